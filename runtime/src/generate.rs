//! Generation as an iterator of pieces of text.

use crate::error::Result;
use crate::model::Model;
use crate::sampler::{Sampler, SamplerConfig};
use crate::scores::Need;
use crate::session::Session;
use crate::speculation::Speculator;
use crate::tokenizer::{StopStrings, Utf8Stream};
use std::time::{Duration, Instant};

pub use crate::speculation::Speculation;

/// How to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// At most this many tokens; `None`: until the model ends or the context is full.
    pub max_tokens: Option<usize>,
    /// How tokens are chosen.
    pub sampler: SamplerConfig,
    /// Texts that end the generation; they are not part of the output.
    pub stop: Vec<String>,
    /// Whether to go on after an end token.
    pub ignore_eos: bool,
    /// Prompt tokens per step; 0 for the default.
    pub chunk: usize,
    /// Whether pieces have log-probabilities, which take the logits of all tokens.
    pub logprobs: bool,
    /// Whether tokens are guessed ahead; the output does not depend on it.
    pub speculation: Speculation,
}

/// One generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// Text that became certain with it: valid UTF-8, empty while a character or a possible stop
    /// string is incomplete. The last piece holds what was held back.
    pub text: String,
    /// The token's log-probability under the model itself, before penalties and temperature, if
    /// [`GenerateOptions::logprobs`] asks for it.
    pub logprob: Option<f32>,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model produced an end token.
    EndToken,
    /// A stop string appeared.
    StopString,
    /// `max_tokens` were generated.
    MaxTokens,
    /// No further token fits.
    ContextFull,
}

/// What a generation took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stats {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Seconds until the prompt was read.
    pub prompt_seconds: f64,
    /// Tokens generated, the end token included.
    pub generated_tokens: usize,
    /// Seconds that took, without the time the caller spent between tokens.
    pub generated_seconds: f64,
    /// Steps through the model that they took, each with one token and those guessed ahead.
    pub steps: usize,
    /// Tokens guessed ahead.
    pub drafted_tokens: usize,
    /// Those of them that were right.
    pub accepted_tokens: usize,
}

/// An iterator over generated tokens.
///
/// The last token chosen is fed to the model only when the next one is asked for, so a session can
/// be continued from exactly what was yielded, plus that one token.
pub struct Generation<'s> {
    session: &'s mut Session,
    model: Model,
    sampler: Sampler,
    speculator: Speculator,
    stop: StopStrings,
    utf8: Utf8Stream,
    max_tokens: usize,
    ignore_eos: bool,
    logprobs: bool,
    pending: Option<u32>,
    finish: Option<Finish>,
    /// What failed once would fail again; the caller has the error.
    failed: bool,
    stats: Stats,
    spent: Duration,
}

impl<'s> Generation<'s> {
    /// Feeds `prompt` (the tokens that are not yet in the session) and gets ready.
    ///
    /// # Errors
    /// Settings or a prompt that are refused, see [`SamplerConfig::validate`] and
    /// [`Session::prefill`].
    pub fn new(session: &'s mut Session, prompt: &[u32], options: &GenerateOptions) -> Result<Generation<'s>> {
        let begun = Generation::begin(session, prompt, options, &mut || true)?;
        Ok(begun.expect("nobody ends it"))
    }

    /// Begins like [`Generation::new`], but ends where `go_on`, asked before each chunk of the prompt, says no. The session
    /// then has the tokens that were fed, and no logits after them.
    ///
    /// # Errors
    /// As [`Generation::new`].
    pub fn begin(
        session: &'s mut Session,
        prompt: &[u32],
        options: &GenerateOptions,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Generation<'s>>> {
        let sampler = Sampler::new(options.sampler.clone())?;
        let stop = StopStrings::new(&options.stop)?;
        let began = Instant::now();
        let need = match prompt.split_last() {
            Some((last, before)) if !options.logprobs => {
                sampler.need_after(&[session.tokens(), before].concat(), *last)
            }
            _ => Need::All,
        };
        if !session.prefill_while(prompt, options.chunk, &need, go_on)? {
            return Ok(None);
        }
        let stats =
            Stats { prompt_tokens: prompt.len(), prompt_seconds: began.elapsed().as_secs_f64(), ..Stats::default() };
        Ok(Some(Generation {
            model: session.model(),
            session,
            sampler,
            speculator: Speculator::new(options.speculation),
            stop,
            utf8: Utf8Stream::new(),
            max_tokens: options.max_tokens.unwrap_or(usize::MAX),
            ignore_eos: options.ignore_eos,
            logprobs: options.logprobs,
            pending: None,
            finish: if options.max_tokens == Some(0) { Some(Finish::MaxTokens) } else { None },
            failed: false,
            stats,
            spent: Duration::ZERO,
        }))
    }

    /// Why the generation ended; nothing while it goes on.
    #[must_use]
    pub fn finish(&self) -> Option<Finish> {
        self.finish
    }

    /// What it took so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = self.speculator.counts();
        Stats {
            generated_seconds: self.spent.as_secs_f64(),
            steps: counts.steps,
            drafted_tokens: counts.drafted,
            accepted_tokens: counts.accepted,
            ..self.stats
        }
    }

    fn step(&mut self) -> Result<Piece> {
        if let Some(token) = self.pending.take() {
            // The token sampled next is not among those that can be guessed.
            let wanted = self.max_tokens - self.stats.generated_tokens - 1;
            let sampler = (!self.logprobs).then_some(&self.sampler);
            self.speculator.feed(self.session, token, wanted, sampler)?;
        }
        let id = self.sampler.choose(self.session.scores(), self.session.tokens())?;
        let logprob = self.logprobs.then(|| self.session.logprob(id));
        self.stats.generated_tokens += 1;
        let ends = self.model.tokenizer().is_end(id) && !self.ignore_eos;
        let mut text = String::new();
        if !ends {
            let bytes = self.model.tokenizer().token_bytes(id);
            text = self.stop.push(&self.utf8.push(bytes));
            self.pending = Some(id);
        }
        self.finish = if ends {
            Some(Finish::EndToken)
        } else if self.stop.stopped() {
            Some(Finish::StopString)
        } else if self.stats.generated_tokens >= self.max_tokens {
            Some(Finish::MaxTokens)
        } else if self.session.position() >= self.session.context_length() {
            Some(Finish::ContextFull)
        } else {
            None
        };
        if self.finish.is_some() && !self.stop.stopped() {
            let held = self.utf8.finish();
            text.push_str(&self.stop.push(&held));
            text.push_str(&self.stop.finish());
        }
        Ok(Piece { id, text, logprob })
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Result<Piece>> {
        if self.finish.is_some() || self.failed {
            return None;
        }
        let began = Instant::now();
        let piece = self.step();
        self.spent += began.elapsed();
        self.failed = piece.is_err();
        Some(piece)
    }
}
