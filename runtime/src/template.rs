//! Chat templates: how the messages of a conversation become one prompt.
//!
//! A model file carries its form as a Jinja program (`tokenizer.chat_template`); published ones are written for Python's
//! Jinja2, so the string methods of Python, `raise_exception` and `strftime_now` are there too. The program is untrusted. It
//! cannot read anything but what it is given, and a budget of fuel, paid for every step and for every 64 bytes made, bounds
//! its time and memory; the length of its source and its depth are limited as well, and it runs on a thread with a stack of its own and a
//! deadline.
//!
//! A file without a template gets a known form, chosen by architecture and vocabulary.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, ErrorKind, State, context};
use minijinja_contrib::pycompat;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Longest template in bytes; the longest published ones have some 20 KB. Compiling takes quadratic time at worst.
const MAX_SOURCE: usize = 32 << 10;
/// Steps, and units of 64 bytes of data, that a conversation may cost: this at least, and its own size many times over.
const FUEL: u64 = 30_000;
const FUEL_PER_MESSAGE: u64 = 500;
/// A unit pays for 64 bytes, so each byte of the messages may be copied some twenty times.
const BYTES_PER_FUEL: u64 = 3;
/// The engine walks programs and values recursively. The worst that the limits here admit fitted in 32 MiB.
const STACK: usize = 64 << 20;
/// The last resort, for what the engine does not charge: joining lists, and compiling one very long expression. A sound
/// template takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(3);
/// Nested macro calls and blocks.
const MAX_DEPTH: usize = 50;
const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A known form, for files without a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatForm {
    /// BitNet-b1.58-2B-4T: `User: …<|eot_id|>Assistant: `.
    BitNet,
    /// Llama-3: a header with the role, then the message and `<|eot_id|>`.
    Llama3,
    /// `<|im_start|>role`, the message, `<|im_end|>`: Qwen and others.
    ChatMl,
    /// `User: …` and `Assistant: …` on lines, without control tokens.
    Plain,
}

impl ChatForm {
    fn source(self) -> &'static str {
        match self {
            Self::BitNet => {
                "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}<|eot_id|>{% endfor %}\
                 {% if add_generation_prompt %}Assistant: {% endif %}"
            }
            Self::Llama3 => {
                "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>{{ '\\n\\n' }}\
                 {{ m.content | trim }}<|eot_id|>{% endfor %}\
                 {% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"
            }
            Self::ChatMl => {
                "{% for m in messages %}<|im_start|>{{ m.role }}{{ '\\n' }}{{ m.content }}<|im_end|>{{ '\\n' }}{% endfor %}\
                 {% if add_generation_prompt %}<|im_start|>assistant{{ '\\n' }}{% endif %}"
            }
            Self::Plain => {
                "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content | trim }}{{ '\\n' }}{% endfor %}\
                 {% if add_generation_prompt %}Assistant:{% endif %}"
            }
        }
    }

    /// The form for a file of this architecture and vocabulary.
    fn choose(architecture: &str, tokenizer: &Tokenizer) -> Self {
        let has = |name| tokenizer.special_id(name).is_some();
        if architecture.starts_with("bitnet") && has("<|eot_id|>") {
            Self::BitNet
        } else if has("<|start_header_id|>") && has("<|eot_id|>") {
            Self::Llama3
        } else if has("<|im_start|>") && has("<|im_end|>") {
            Self::ChatMl
        } else {
            Self::Plain
        }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    form: Option<ChatForm>,
}

impl ChatTemplate {
    /// The template in a model file, or the known form that fits it.
    ///
    /// # Errors
    /// A template that is too long, is not text, or does not compile.
    pub fn from_checkpoint(file: &Checkpoint, tokenizer: &Tokenizer) -> Result<Self> {
        let name = |id: Option<u32>| {
            let bytes = id.and_then(|id| tokenizer.token_name(id)).unwrap_or_default();
            String::from_utf8_lossy(bytes).into_owned()
        };
        let (bos, eos) = (name(tokenizer.bos()), name(tokenizer.eos()));
        if let Some(source) = file.find::<&str>("tokenizer.chat_template")? {
            return Self::new(source, &bos, &eos);
        }
        let architecture = file.find::<&str>("general.architecture")?.unwrap_or_default();
        Self::known(ChatForm::choose(architecture, tokenizer), &bos, &eos)
    }

    /// One of the known forms.
    ///
    /// # Errors
    /// None in practice: the forms compile.
    pub fn known(form: ChatForm, bos: &str, eos: &str) -> Result<Self> {
        Ok(Self { form: Some(form), ..Self::new(form.source(), bos, eos)? })
    }

    /// Compiles a template. `bos` and `eos` are what it sees as `bos_token` and `eos_token`.
    ///
    /// # Errors
    /// A source that is longer than 32 KiB or does not compile.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self> {
        if source.len() > MAX_SOURCE {
            return Err(Error::Template {
                what: format!("it has {} bytes, the limit is {MAX_SOURCE}", source.len()),
                fix: "use a file whose template is a plain conversation".into(),
            });
        }
        let mut environment = Environment::new();
        // What Python's side sets: a line with only a block leaves no trace.
        environment.set_syntax(
            SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| refused(&error))?,
        );
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_debug(false);
        environment.set_unknown_method_callback(python_method);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: String| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
            strftime(&format, now)
        });
        let source = source.to_owned();
        let environment = on_deep_stack(DEADLINE, move || {
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        })?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into(), form: None })
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer begins. Control tokens
    /// appear by name: encode with [`SpecialTokens::Parse`](crate::tokenizer::SpecialTokens::Parse).
    ///
    /// # Errors
    /// What the template raises (some refuse a system message, or two of one role in a row), and a budget that is used up.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let bytes = messages.iter().map(|m| m.content.len() + m.role.len()).sum::<usize>() as u64;
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + bytes / BYTES_PER_FUEL;
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| context! { role => message.role.as_str(), content => message.content.as_str() })
            .collect();
        let given = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            // Templates ask whether these are none rather than whether they are there.
            tools => Value::from(()),
            documents => Value::from(()),
        };
        // Cheap: a clone shares the compiled template.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel));
        on_deep_stack(DEADLINE, move || environment.get_template(NAME)?.render(given))
    }

    /// The known form that stands in for a template of the file's own, if it has none.
    pub fn form(&self) -> Option<ChatForm> {
        self.form
    }

    /// A sentence for the user when the form is only a guess.
    pub fn note(&self) -> Option<&'static str> {
        (self.form == Some(ChatForm::Plain)).then_some(
            "this file has no chat template and none of the known forms fits; \
             it talks as lines of \"User:\" and \"Assistant:\"",
        )
    }

    /// Strings that end an answer because the form has no token for it.
    pub fn stop_strings(&self) -> &'static [&'static str] {
        match self.form {
            Some(ChatForm::Plain) => &["\nUser:", "\nSystem:"],
            _ => &[],
        }
    }
}

/// What the functions given to the engine return.
type Engine<T> = std::result::Result<T, minijinja::Error>;

/// Runs the engine on a thread with a stack that no admissible template exhausts, and waits no longer than the deadline.
/// A thread that is late is abandoned: it ends with the process or with the fuel.
fn on_deep_stack<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> Engine<T> + Send + 'static,
) -> Result<T> {
    let failed = |what: String| Error::Template {
        what,
        fix: "use `tritone run`, which needs no template, or another file".into(),
    };
    let (send, receive) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("chat template".into())
        .stack_size(STACK)
        .spawn(move || send.send(work()))
        .map_err(|error| failed(format!("a thread for it could not be started: {error}")))?;
    match receive.recv_timeout(deadline) {
        Ok(result) => result.map_err(|error| refused(&error)),
        Err(RecvTimeoutError::Timeout) => {
            Err(failed(format!("it is not done after {} seconds", deadline.as_secs_f64())))
        }
        Err(RecvTimeoutError::Disconnected) => Err(failed("the template engine failed on it".into())),
    }
}

/// An error of the template engine as one line; it may quote the template.
fn refused(error: &minijinja::Error) -> Error {
    let mut what: String = error.to_string().chars().take(300).flat_map(char::escape_debug).collect();
    // Quotes are common in these messages and harmless.
    what = what.replace("\\\"", "\"").replace("\\'", "'");
    let fix = match error.kind() {
        ErrorKind::OutOfFuel => "the template or the conversation is too large: start a new one",
        ErrorKind::InvalidOperation => "change the messages, or use `tritone run`, which needs no template",
        _ => "use `tritone run`, which needs no template, or another file",
    };
    Error::Template { what, fix: fix.into() }
}

fn fail(kind: ErrorKind, message: String) -> minijinja::Error {
    minijinja::Error::new(kind, message)
}

fn raise_exception(message: String) -> Engine<Value> {
    Err(fail(ErrorKind::InvalidOperation, message))
}

/// Methods of Python's strings and dictionaries.
///
/// The engine charges a method only for what it returns, so whatever may be larger than its arguments goes through the
/// engine's own filters, which pay before they allocate, and the rest pays for its input first.
fn python_method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Engine<Value> {
    let unknown = || {
        let what = format!("{} has no method {method} for these arguments", value.kind());
        Err(fail(ErrorKind::UnknownMethod, what))
    };
    match (value.kind(), value.as_str()) {
        (ValueKind::Map, _) => {}
        (_, Some(text)) => match (method, args) {
            ("join", [items]) => {
                return state.apply_filter("join", &[items.clone(), value.clone()]);
            }
            ("replace", [old, new]) => {
                return state.apply_filter("replace", &[value.clone(), old.clone(), new.clone()]);
            }
            ("join" | "replace" | "format", _) => return unknown(),
            // Every part is a value of its own.
            ("split" | "splitlines", _) => state.consume_fuel(text.len() as u64)?,
            _ => state.consume_fuel(1 + text.len() as u64 / 64)?,
        },
        _ => return unknown(),
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Python's `strftime` for the codes that templates use, in UTC. `seconds` are since 1970.
fn strftime(format: &str, seconds: u64) -> Engine<String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let two = |n: u64| {
            if padded { format!("{n:02}") } else { n.to_string() }
        };
        let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[(days % 7) as usize]);
        out += &match code {
            Some('Y') => year.to_string(),
            Some('y') => two(year % 100),
            Some('m') => two(month),
            Some('d') => two(day),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => month_name.into(),
            Some('b') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('%') => "%".into(),
            _ => {
                return Err(fail(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know a code in {format:?}"),
                ));
            }
        };
    }
    Ok(out)
}

/// Year, month and day (from 1) of a day counted from 1970-01-01.
///
/// Years are counted from March, so that the leap day is the last of a year and months follow one formula (Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01; 146097 days are 400 years.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day - (153 * from_march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_what_fuel_does_not() {
        let (_keep, never) = mpsc::channel::<()>();
        let late = on_deep_stack(Duration::from_millis(50), move || Ok(never.recv().is_ok()));
        assert!(late.unwrap_err().to_string().contains("not done after 0.05 seconds"));
    }

    #[test]
    fn dates() {
        let all = |seconds| strftime("%Y-%m-%d %H:%M:%S %a %A %b %B %-d %y %I %p %%", seconds).unwrap();
        assert_eq!(all(0), "1970-01-01 00:00:00 Thu Thursday Jan January 1 70 12 AM %");
        assert_eq!(all(951_782_400 + 13 * 3600 + 61), "2000-02-29 13:01:01 Tue Tuesday Feb February 29 00 01 PM %");
        assert_eq!(all(1_721_952_000), "2024-07-26 00:00:00 Fri Friday Jul July 26 24 12 AM %");
        assert!(strftime("%Q", 0).is_err() && strftime("%", 0).is_err());
    }

    #[test]
    fn every_day_of_four_hundred_years() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..146_097 {
            assert_eq!(civil(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }
}
