//! Chat templates: how the messages of a conversation become one prompt.
//!
//! A model file carries its form as a Jinja program (`tokenizer.chat_template`); published ones are written for Python's
//! Jinja2, so the string methods of Python, `raise_exception` and `strftime_now` are there too. The program is untrusted. It
//! cannot read anything but what it is given, and these bound what it can do:
//!
//! - compiling: the length of its source (`MAX_SOURCE`) and the depth of its expressions and blocks (`bounds`);
//! - time: a budget of fuel, paid to the engine for every step, every 64 bytes made and every item visited, and to us for
//!   what the engine does not see, the inside of containers (`bounds`, `size`);
//! - memory and output: the same budget, for what is made is paid for before or right after; what is paid for after is
//!   one value, whose size is limited (`size`);
//! - the stack: macro calls and blocks (`MAX_DEPTH`), lists in lists (`size`), and a thread with a stack of its own;
//! - a deadline, which nothing known reaches.
//!
//! A file without a template gets a known form, chosen by architecture and vocabulary (`forms`).

mod bounds;
mod date;
mod forms;
mod python;
mod size;

use minijinja::machinery::{self, CodeGenerator};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

pub use forms::ChatForm;

/// Longest template in bytes; the longest published ones have some 20 KB.
const MAX_SOURCE: usize = 32 << 10;
/// Steps, and units of 64 bytes of data, that a conversation may cost: this at least, and its own size many times over.
const FUEL: u64 = 30_000;
const FUEL_PER_MESSAGE: u64 = 1000;
/// A unit pays for 64 bytes. A template copies the messages a few times, and each filter that it passes them through,
/// ours included, costs two copies.
const FUEL_PER_BYTE: u64 = 1;
/// The engine parses programs recursively: 32,000 minus signs take as many calls. They were seen to take 17 MiB, and 85 in a build
/// without optimisation, which a program that embeds this crate may well be. What is not used is no memory.
const STACK: usize = if cfg!(debug_assertions) { 256 << 20 } else { 64 << 20 };
/// The last resort. A sound template takes milliseconds.
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

/// A chat template that compiles.
#[derive(Debug)]
pub struct ChatTemplate {
    source: Arc<str>,
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
        environment.set_recursion_limit(MAX_DEPTH);
        size::install(&mut environment);
        python::install(&mut environment);
        let source: Arc<str> = source.into();
        let checked = Arc::clone(&source);
        on_deep_stack(DEADLINE, move || compiled(&checked).map(drop))?;
        Ok(Self { source, environment, bos: bos.into(), eos: eos.into(), form: None })
    }

    /// The prompt for `messages`; with `add_generation_prompt` it ends where the assistant's answer begins. Control tokens
    /// appear by name: encode with [`SpecialTokens::Parse`](crate::tokenizer::SpecialTokens::Parse).
    ///
    /// # Errors
    /// What the template raises (some refuse a system message, or two of one role in a row), and a budget that is used up.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let bytes = messages.iter().map(|m| m.content.len() + m.role.len()).sum::<usize>() as u64;
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + FUEL_PER_BYTE * bytes;
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                let (role, content) = (message.role.as_str().into(), message.content.as_str().into());
                Value::from_object(size::MessageFields { role, content })
            })
            .collect();
        let given = context! {
            messages => Value::from_object(messages),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            // Templates ask whether these are none rather than whether they are there.
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let (source, mut environment) = (Arc::clone(&self.source), self.environment.clone());
        environment.set_fuel(Some(fuel));
        on_deep_stack(DEADLINE, move || {
            // A compiled template borrows its source, and compiling takes less than a millisecond.
            let (instructions, blocks) = compiled(&source)?.finish();
            let mut prompt = String::new();
            let mut out = machinery::make_string_output(&mut prompt);
            machinery::eval(&environment, &instructions, given, &blocks, &mut out, AutoEscape::None)?;
            drop(out);
            Ok(prompt)
        })
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

fn fail(kind: ErrorKind, message: String) -> minijinja::Error {
    minijinja::Error::new(kind, message)
}

/// The program of a template, with bounds.
fn compiled(source: &str) -> Engine<CodeGenerator<'_>> {
    // What Python's side sets: a line with only a block leaves no trace.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
    let template = bounds::bounded(&machinery::parse(source, NAME, syntax)?)?;
    let mut generator = CodeGenerator::new(NAME, source);
    generator.compile_stmt(&template);
    Ok(generator)
}

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
    let thread = std::thread::Builder::new()
        .name("chat template".into())
        .stack_size(STACK)
        .spawn(move || send.send(work()))
        .map_err(|error| failed(format!("a thread for it could not be started: {error}")))?;
    let result = match receive.recv_timeout(deadline) {
        Ok(result) => result.map_err(|error| refused(&error)),
        Err(RecvTimeoutError::Timeout) => {
            return Err(failed(format!("it is not done after {} seconds", deadline.as_secs_f64())));
        }
        Err(RecvTimeoutError::Disconnected) => Err(failed("the template engine failed on it".into())),
    };
    // It has only to give its stack back. A panic has been reported above.
    let _ = thread.join();
    result
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_ends_what_fuel_does_not() {
        let (_keep, never) = mpsc::channel::<()>();
        let late = on_deep_stack(Duration::from_millis(50), move || Ok(never.recv().is_ok()));
        assert!(late.unwrap_err().to_string().contains("not done after 0.05 seconds"));
    }
}
