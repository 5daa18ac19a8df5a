//! What templates expect of Python: methods of strings and dictionaries, and the functions of the common chat engines.

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, ErrorKind, State};
use minijinja_contrib::pycompat;
use std::time::{SystemTime, UNIX_EPOCH};

use super::date::strftime;
use super::size::check_data;
use super::{Engine, fail};

/// Longest argument of `strip` and its like: every character of the text is compared with every one of them.
const MAX_STRIPPED: usize = 64;

/// Adds the functions and methods, and takes out the one that prints the engine's whole state.
pub(super) fn install(environment: &mut Environment) {
    environment.remove_global("debug");
    environment.set_unknown_method_callback(method);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    let made_by = environment.globals().find_map(|(name, value)| (name == "namespace").then_some(value));
    if let Some(namespace) = made_by {
        environment.add_function("namespace", move |state: &mut State, given: Rest<ValueOrKwargs>| {
            make_namespace(state, &namespace, &given.into_values())
        });
    }
}

fn raise_exception(message: String) -> Engine<Value> {
    Err(fail(ErrorKind::InvalidOperation, message))
}

fn strftime_now(format: String) -> Engine<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    strftime(&format, now)
}

/// The engine's `namespace` for data only: one that held another could come to hold itself.
fn make_namespace(state: &mut State, namespace: &Value, given: &[Value]) -> Engine<Value> {
    for fields in given.iter().filter(|fields| fields.kind() == ValueKind::Map) {
        for name in fields.try_iter()? {
            check_data(&fields.get_item(&name)?)?;
        }
    }
    namespace.call(state, given)
}

/// Methods of Python's strings and dictionaries.
///
/// The engine charges a method only for what it returns, so whatever may be larger than its arguments goes through the
/// engine's own filters, which pay before they allocate, and the rest pays for its input first.
fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Engine<Value> {
    let unknown = || {
        let what = format!("{} has no method {method} for these arguments", value.kind());
        Err(fail(ErrorKind::UnknownMethod, what))
    };
    match (value.kind(), value.as_str()) {
        (ValueKind::Map, _) => check_data(value)?,
        (_, Some(text)) => match (method, args) {
            ("join", [items]) => {
                return state.apply_filter("join", &[items.clone(), value.clone()]);
            }
            ("replace", [old, new]) => {
                return state.apply_filter("replace", &[value.clone(), old.clone(), new.clone()]);
            }
            ("join" | "replace" | "format", _) => return unknown(),
            ("strip" | "lstrip" | "rstrip", [taken, ..]) if taken.as_str().is_some_and(|s| s.len() > MAX_STRIPPED) => {
                return Err(fail(
                    ErrorKind::InvalidOperation,
                    format!("{method} takes at most {MAX_STRIPPED} bytes of characters"),
                ));
            }
            // Every part is a value of its own.
            ("split", _) => {
                let parts = match args.first().and_then(Value::as_str) {
                    Some("") => text.len(),
                    Some(between) => text.matches(between).count(),
                    None => text.split_whitespace().count(),
                };
                state.consume_fuel(1 + parts as u64 + text.len() as u64 / 64)?;
            }
            ("splitlines", _) => state.consume_fuel(1 + text.lines().count() as u64 + text.len() as u64 / 64)?,
            _ => state.consume_fuel(1 + text.len() as u64 / 64)?,
        },
        _ => return unknown(),
    }
    pycompat::unknown_method_callback(state, value, method, args)
}
