//! How large a value is, and the filters that [`bounds`](super::bounds) puts into templates.
//!
//! The size of a value is about what it takes to print: eight for each item, however often the same list is counted, and
//! the bytes of its strings. A list that holds another twice is twice as large, so a template cannot make, in a few steps,
//! a value that takes for ever to print or to compare.

use minijinja::value::{Enumerator, Object, Tuple, Value, ValueKind};
use minijinja::{Environment, ErrorKind, Output, State};
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Engine, fail};

/// Lists in lists; the arguments of tools are a tenth as deep.
const MAX_NESTING: usize = 100;
/// A value may have this size for each step that the conversation is allowed.
const SIZE_PER_FUEL: u64 = 16;
/// A unit of the engine's fuel pays for so many items, and for so much size, to be looked at.
const ITEMS_PER_FUEL: u64 = 8;
const LOOK_PER_FUEL: u64 = 1024;
/// Beside its contents, every value has this size.
const ITEM: u64 = 8;
/// Digits of the longest floating-point number.
const FLOAT: u64 = 330;
/// Longest name of an attribute and the like.
const SMALL: usize = 64;
const MAX_INDENT: i64 = 16;

/// Refuses what is not data: namespaces, loops, macros.
pub(super) const DATA: &str = "=data";
/// Pays for looking at the whole of a value.
pub(super) const WEIGH: &str = "=weigh";
/// As [`WEIGH`], for what is compared with one another.
pub(super) const WEIGH_TO_SORT: &str = "=weigh_to_sort";
/// Pays for the length of a list.
pub(super) const LENGTH: &str = "=length";
/// Makes a list of what computes its items when they are asked for.
pub(super) const COLLECT: &str = "=collect";
/// Makes a list, pays for it, and refuses it where it is too large.
pub(super) const SETTLE: &str = "=settle";
/// Refuses what Python would not take as a key.
pub(super) const KEY: &str = "=key";
/// Refuses long strings and large numbers.
pub(super) const SMALL_ONLY: &str = "=small";

/// Fails with the message it is given.
pub(super) const REFUSE: &str = "=refuse";

/// Adds the filters, and what prints values. No template can name these filters.
pub(super) fn install(environment: &mut Environment) {
    environment.add_filter(DATA, data);
    environment.add_filter(WEIGH, weigh);
    environment.add_filter(WEIGH_TO_SORT, weigh_to_sort);
    environment.add_filter(LENGTH, length);
    environment.add_filter(COLLECT, collect);
    environment.add_filter(SETTLE, settle);
    environment.add_filter(KEY, key);
    environment.add_filter(SMALL_ONLY, small_only);
    environment.add_filter(REFUSE, refuse);
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        check_data(value)?;
        minijinja::escape_formatter(out, state, value)
    });
}

/// A message as templates see it.
#[derive(Debug)]
pub(super) struct MessageFields {
    pub role: Value,
    pub content: Value,
}

impl Object for MessageFields {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str()? {
            "role" => Some(self.role.clone()),
            "content" => Some(self.content.clone()),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["role", "content"])
    }
}

/// The containers that data consists of. Each knows its items; the engine's others compute them, or refer to what changes.
enum Container<'a> {
    List(&'a [Value]),
    Map(&'a BTreeMap<Value, Value>),
    Message(&'a MessageFields),
}

fn container(value: &Value) -> Option<Container<'_>> {
    if let Some(list) = value.downcast_object_ref::<Vec<Value>>() {
        Some(Container::List(list))
    } else if let Some(tuple) = value.downcast_object_ref::<Tuple>() {
        Some(Container::List(tuple))
    } else if let Some(map) = value.downcast_object_ref::<BTreeMap<Value, Value>>() {
        Some(Container::Map(map))
    } else {
        value.downcast_object_ref::<MessageFields>().map(Container::Message)
    }
}

/// Refuses values that are not data. What is in a container has been checked when the container was made.
pub(super) fn check_data(value: &Value) -> Engine<()> {
    if value.as_object().is_none() || container(value).is_some() {
        return Ok(());
    }
    let what = "a namespace, a loop or a macro can only be called or asked for its fields";
    Err(fail(ErrorKind::InvalidOperation, what.into()))
}

/// The walk over a value.
struct Walk {
    items: u64,
    size: u64,
    limit: u64,
}

impl Walk {
    fn visit(&mut self, value: &Value, nesting: usize) -> Engine<()> {
        self.items += 1;
        self.size += ITEM
            + match value.kind() {
                ValueKind::String => value.as_str().map_or(0, str::len) as u64,
                ValueKind::Bytes => value.as_bytes().map_or(0, <[u8]>::len) as u64,
                ValueKind::Number if !value.is_integer() => FLOAT,
                _ => 0,
            };
        if self.size > self.limit {
            let what = format!("it makes a value of more than {} bytes", self.limit);
            return Err(fail(ErrorKind::OutOfFuel, what));
        }
        if value.as_object().is_none() {
            return Ok(());
        }
        if nesting == MAX_NESTING {
            let what = format!("it nests lists more than {MAX_NESTING} deep");
            return Err(fail(ErrorKind::InvalidOperation, what));
        }
        check_data(value)?;
        match container(value) {
            Some(Container::List(list)) => list.iter().try_for_each(|item| self.visit(item, nesting + 1)),
            Some(Container::Map(map)) => map.iter().try_for_each(|(key, item)| {
                self.visit(key, nesting + 1)?;
                self.visit(item, nesting + 1)
            }),
            Some(Container::Message(message)) => {
                self.visit(&message.role, nesting + 1)?;
                self.visit(&message.content, nesting + 1)
            }
            None => Ok(()),
        }
    }
}

/// Looks at the whole of a value and pays for that; returns its size.
fn look(state: &State, value: &Value) -> Engine<u64> {
    let (used, left) = state.fuel_levels().unwrap_or_default();
    let mut walk = Walk { items: 0, size: 0, limit: (used + left).saturating_mul(SIZE_PER_FUEL) };
    let seen = walk.visit(value, 0);
    state.consume_fuel(walk.items / ITEMS_PER_FUEL + walk.size / LOOK_PER_FUEL)?;
    seen.map(|()| walk.size)
}

fn data(value: Value) -> Engine<Value> {
    check_data(&value)?;
    Ok(value)
}

fn weigh(state: &State, value: Value) -> Engine<Value> {
    look(state, &value)?;
    Ok(value)
}

/// Sorting may compare one item with every other, and copies both where it ignores case.
fn weigh_to_sort(state: &State, value: Value) -> Engine<Value> {
    look(state, &value)?;
    if value.as_object().is_some() {
        let (mut items, mut largest) = (0_u64, 0);
        for item in value.try_iter()? {
            let of_key = if value.kind() == ValueKind::Map { look(state, &value.get_item(&item)?)? } else { 0 };
            largest = largest.max(look(state, &item)?).max(of_key);
            items += 1;
        }
        state.consume_fuel(items.saturating_mul(largest) / LOOK_PER_FUEL)?;
    }
    Ok(value)
}

fn length(state: &State, value: Value) -> Engine<Value> {
    if value.as_object().is_some() {
        state.consume_fuel(value.len().unwrap_or_default() as u64 / ITEMS_PER_FUEL)?;
    }
    Ok(value)
}

fn collect(state: &State, value: Value) -> Engine<Value> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) || container(&value).is_some() {
        return Ok(value);
    }
    let mut list = Vec::new();
    for item in value.try_iter()?.checked() {
        state.consume_fuel(1)?;
        list.push(item?);
    }
    Ok(Value::from_object(list))
}

fn settle(state: &State, value: Value) -> Engine<Value> {
    let value = collect(state, value)?;
    if container(&value).is_some() {
        look(state, &value)?;
    }
    Ok(value)
}

fn key(value: Value) -> Engine<Value> {
    if value.as_object().is_some() {
        let what = format!("a {} cannot be a key", value.kind());
        return Err(fail(ErrorKind::InvalidOperation, what));
    }
    Ok(value)
}

fn small_only(value: Value) -> Engine<Value> {
    let small = match value.kind() {
        ValueKind::String => value.as_str().is_some_and(|text| text.len() <= SMALL),
        ValueKind::Number => value.as_i64().is_some_and(|number| (-MAX_INDENT..=MAX_INDENT).contains(&number)),
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool => true,
        _ => false,
    };
    if small {
        return Ok(value);
    }
    let what = format!("a filter takes strings of {SMALL} bytes and numbers up to {MAX_INDENT} as its settings");
    Err(fail(ErrorKind::InvalidOperation, what))
}

fn refuse(what: String) -> Engine<Value> {
    Err(fail(ErrorKind::InvalidOperation, what))
}
