//! `tritone chat`: a conversation, in a terminal or through pipes.

use crate::args::{ContextArgs, ModelArgs, SamplingArgs, SpeculationArgs};
use crate::commands::run::{random_seed, skipped, speculation, speed};
use crate::failure::{Result, Stop};
use crate::interrupt::{self, Watch};
use crate::load;
use crate::output::{emit, note};
use clap::Args;
use rustyline::error::ReadlineError;
use std::io::{self, BufRead, IsTerminal};
use tritone_runtime::generate::{Finish, GenerateOptions, Generation};
use tritone_runtime::model::Model;
use tritone_runtime::session::Session;
use tritone_runtime::template::Message;

const HELP: &str = "\
/system TEXT   give the model its role; without a text, take it away
/clear         forget the conversation
/regen         another answer to the last message
/help          this list
/exit          end; Ctrl-D does too. Ctrl-C stops an answer, twice ends";

/// Options of `chat`.
#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    context: ContextArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    speculation: SpeculationArgs,
    /// The role of the model
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer; left out: until the model ends it
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<()> {
    interrupt::install()?;
    let model = load::model(&args.model)?;
    let seed = args.sampling.seed.unwrap_or_else(random_seed);
    if args.model.verbose {
        note(format_args!("seed {seed}"));
    }
    let mut input = Input::open(args.model.quiet)?;
    if let Some(sentence) = model.chat_template().note().filter(|_| !args.model.quiet) {
        note(sentence);
    }
    let mut chat = Chat {
        session: model.session(args.context.length)?,
        model,
        args,
        seed,
        unanswered: 0,
        system: args.system.clone(),
        turns: Vec::new(),
    };
    while let Some(line) = input.read()? {
        match Line::parse(&line) {
            Line::Empty => {}
            Line::Exit => break,
            Line::Help => note(HELP),
            Line::Clear => chat.turns.clear(),
            Line::System(text) => chat.system = (!text.is_empty()).then(|| text.to_owned()),
            Line::Regenerate => chat.regenerate()?,
            Line::Unknown(name) => note(format_args!("there is no command {name}; /help lists them")),
            Line::Text(text) => chat.say(text)?,
        }
    }
    match chat.unanswered {
        // Who sits at a terminal has seen it; a script has to hear of it.
        n @ 1.. if matches!(input, Input::Pipe(_)) => {
            Err(Stop::runtime(format_args!("{n} of the messages could not be answered")))
        }
        _ => Ok(()),
    }
}

/// A line of the user.
#[derive(Debug, PartialEq)]
enum Line<'l> {
    Empty,
    Exit,
    Help,
    Clear,
    Regenerate,
    System(&'l str),
    Unknown(&'l str),
    Text(&'l str),
}

impl Line<'_> {
    fn parse(line: &str) -> Line<'_> {
        let line = line.trim();
        if !line.starts_with('/') {
            return if line.is_empty() { Line::Empty } else { Line::Text(line) };
        }
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match name {
            "/exit" | "/quit" => Line::Exit,
            "/help" => Line::Help,
            "/clear" => Line::Clear,
            "/regen" => Line::Regenerate,
            "/system" => Line::System(rest.trim()),
            _ => Line::Unknown(name),
        }
    }
}

/// Where lines come from.
enum Input {
    Terminal { editor: Box<rustyline::DefaultEditor>, interrupted: bool, quiet: bool },
    Pipe(io::Lines<io::StdinLock<'static>>),
}

impl Input {
    fn open(quiet: bool) -> Result<Input> {
        if !io::stdin().is_terminal() {
            return Ok(Input::Pipe(io::stdin().lock().lines()));
        }
        let editor = rustyline::DefaultEditor::new()
            .map_err(|error| Stop::runtime(format_args!("cannot use the terminal: {error}")))?;
        Ok(Input::Terminal { editor: Box::new(editor), interrupted: false, quiet })
    }

    /// The next line, or nothing at the end.
    fn read(&mut self) -> Result<Option<String>> {
        let (editor, interrupted, quiet) = match self {
            Input::Pipe(lines) => {
                let line = lines.next().transpose();
                return line.map_err(|error| Stop::runtime(format_args!("cannot read standard input: {error}")));
            }
            Input::Terminal { editor, interrupted, quiet } => (editor, interrupted, *quiet),
        };
        loop {
            match editor.readline("> ") {
                Ok(line) => {
                    *interrupted = false;
                    if !line.trim().is_empty() {
                        // A history that can't take a line is no reason to end the talk.
                        let _ = editor.add_history_entry(&line);
                    }
                    return Ok(Some(line));
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) if *interrupted => return Err(Stop::Interrupted),
                Err(ReadlineError::Interrupted) => {
                    *interrupted = true;
                    if !quiet {
                        note("Ctrl-C once more, or /exit, ends");
                    }
                }
                Err(error) => return Err(Stop::runtime(format_args!("cannot read the terminal: {error}"))),
            }
        }
    }
}

/// A conversation and the model's memory of it.
struct Chat<'a> {
    session: Session,
    model: Model,
    args: &'a ChatArgs,
    /// Moves on with every answer, so that another one differs.
    seed: u64,
    /// Messages without an answer, other than those that were stopped.
    unanswered: usize,
    system: Option<String>,
    /// User and assistant in turn.
    turns: Vec<Message>,
}

impl Chat<'_> {
    /// Takes a message and answers it. One that cannot be answered is taken back.
    fn say(&mut self, text: &str) -> Result<()> {
        self.turns.push(Message::new("user", text));
        if !self.answer()? {
            self.turns.pop();
        }
        Ok(())
    }

    fn regenerate(&mut self) -> Result<()> {
        let before = self.turns.pop_if(|turn| turn.role == "assistant");
        if self.turns.is_empty() {
            note("there is nothing to answer yet");
            return Ok(());
        }
        if !self.answer()? {
            self.turns.extend(before);
        }
        Ok(())
    }

    /// Answers the last message. What is wrong with a message ends the turn, not the talk. Returns whether there is an answer.
    fn answer(&mut self) -> Result<bool> {
        let ids = match self.fitting_prompt() {
            Ok(ids) => ids,
            Err(Stop::Error { message, .. }) => {
                note(format_args!("error: {message}"));
                self.unanswered += 1;
                return Ok(false);
            }
            Err(stop) => return Err(stop),
        };
        // What the cache knows already is not computed again; one token is, for its logits.
        let same = self.session.tokens().iter().zip(&ids).take_while(|(a, b)| a == b).count();
        let same = same.min(ids.len().saturating_sub(1));
        self.session.truncate(same);

        let mut sampler = self.args.sampling.config(self.seed);
        sampler.seed = self.seed;
        self.seed = self.seed.wrapping_add(1);
        let options = GenerateOptions {
            max_tokens: self.args.max_tokens,
            sampler,
            stop: self.model.chat_template().stop_strings().iter().map(|&text| text.to_owned()).collect(),
            ignore_eos: false,
            chunk: self.args.context.chunk,
            logprobs: false,
            speculation: self.args.speculation.choice(),
        };
        let may_be_longer = self.may_be_longer();
        let watch = Watch::start();
        let begun = Generation::begin(&mut self.session, &ids[same..], &options, &mut || !watch.pressed())?;
        let Some(mut generation) = begun else {
            note("stopped before the answer began; it is as if nothing had been asked");
            return Ok(false);
        };
        let mut answer = String::new();
        for piece in generation.by_ref() {
            let text = piece?.text;
            // Models like to begin with the space that their template left out.
            let text = if answer.is_empty() { text.trim_start() } else { &text };
            emit(text)?;
            answer.push_str(text);
            if watch.pressed() {
                break;
            }
        }
        drop(watch);
        emit("\n")?;
        if generation.finish() == Some(Finish::ContextFull) {
            let longer = if may_be_longer { "-c TOKENS makes it longer, " } else { "" };
            note(format_args!("the context is full, the answer ends here; {longer}/clear empties it"));
        }
        if self.args.model.verbose {
            note(speed(&generation.stats(), &self.model));
            note(speculation(&generation.stats()));
            if let Some(sentence) = skipped(self.session.skipped().density()) {
                note(sentence);
            }
        }
        self.turns.push(Message::new("assistant", answer));
        Ok(true)
    }

    /// The conversation in tokens, without its oldest turns where they do not fit.
    fn fitting_prompt(&mut self) -> Result<Vec<u32>> {
        let context = self.session.context_length();
        // Room for an answer.
        let most = context - (context / 4).min(256);
        let mut dropped = 0;
        loop {
            let ids = self.prompt(dropped)?;
            if ids.len() <= most {
                if dropped > 0 {
                    self.turns.drain(..dropped);
                    note(format_args!("the context is full: the {dropped} oldest messages were dropped"));
                }
                return Ok(ids);
            }
            // The last message stays, and a conversation begins with the user. What is refused drops nothing.
            if self.turns.len() < dropped + 3 {
                return Err(Stop::runtime(format_args!(
                    "the message makes {} tokens but the context has room for {most}; shorten it{}",
                    ids.len(),
                    if self.may_be_longer() { " or raise the context with -c" } else { "" }
                )));
            }
            dropped += 2;
        }
    }

    /// Whether the model was made for a longer context than this one.
    fn may_be_longer(&self) -> bool {
        self.session.context_length() < self.model.config().context_length
    }

    /// The conversation in tokens, without so many of its oldest messages.
    fn prompt(&self, dropped: usize) -> Result<Vec<u32>> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain(self.turns[dropped..].iter().cloned()).collect();
        Ok(self.model.chat_tokens(&messages, true)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_text() {
        assert_eq!(Line::parse("  \n"), Line::Empty);
        assert_eq!(Line::parse(" hello /exit "), Line::Text("hello /exit"));
        assert_eq!(Line::parse("/exit"), Line::Exit);
        assert_eq!(Line::parse("/system  Be brief. "), Line::System("Be brief."));
        assert_eq!(Line::parse("/system"), Line::System(""));
        assert_eq!(Line::parse("/frob x"), Line::Unknown("/frob"));
    }

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: ChatArgs,
    }

    /// A conversation at a terminal with the model in the binary.
    #[cfg(feature = "embedded-model")]
    fn with_chat(test: impl Fn(&mut Chat<'_>)) {
        let Command { args } = clap::Parser::parse_from(["chat", "-c", "200", "-n", "3", "--temp", "0", "-q"]);
        let model = load::model(&args.model).unwrap();
        let session = model.session(args.context.length).unwrap();
        test(&mut Chat { session, model, args: &args, seed: 1, unanswered: 0, system: None, turns: Vec::new() });
    }

    #[cfg(feature = "embedded-model")]
    fn contents(chat: &Chat<'_>) -> Vec<String> {
        chat.turns.iter().map(|turn| turn.content.clone()).collect()
    }

    #[cfg(feature = "embedded-model")]
    #[test]
    fn a_message_that_does_not_fit_leaves_the_conversation() {
        with_chat(|chat| {
            for text in ["My name is Bob", "Second message", "third one"] {
                chat.say(text).unwrap();
            }
            let before = contents(chat);
            assert_eq!(before.len(), 6);
            chat.say(&"the old king ".repeat(400)).unwrap();
            assert_eq!(contents(chat), before);
            chat.regenerate().unwrap();
            assert_eq!(contents(chat), before);
        });
    }

    #[cfg(feature = "embedded-model")]
    #[test]
    fn an_answer_that_cannot_be_made_again_stays() {
        with_chat(|chat| {
            chat.say("My name is Bob").unwrap();
            let before = contents(chat);
            chat.system = Some("very ".repeat(400));
            chat.regenerate().unwrap();
            assert_eq!(contents(chat), before);
            chat.system = None;
            chat.regenerate().unwrap();
            assert_eq!((chat.turns.len(), &contents(chat)[0]), (2, &before[0]));
        });
    }
}
