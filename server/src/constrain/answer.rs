//! One answer under a grammar.

use llguidance::api::StopReason;
use llguidance::{TokenParser, panic_utils};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use super::Refused;
use super::vocabulary::Vocabulary;
use crate::engine::job::Constraint;

pub(super) struct Answer {
    parser: TokenParser,
    vocabulary: Arc<Vocabulary>,
    /// After an end token.
    ended: bool,
}

impl Answer {
    pub(super) fn new(parser: TokenParser, vocabulary: Arc<Vocabulary>) -> Self {
        Self { parser, vocabulary, ended: false }
    }
}

/// Runs the parser; what it panics on is an error like others.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    panic_utils::catch_unwind(AssertUnwindSafe(|| Ok(work())))
        .unwrap_or_else(|error| Err(Refused::internal(error).to_string()))
}

impl Constraint for Answer {
    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self { parser: self.parser.deep_clone(), vocabulary: Arc::clone(&self.vocabulary), ended: self.ended })
    }

    fn allow(&mut self, mask: &mut [u32]) -> Result<(), String> {
        if self.ended {
            return Ok(());
        }
        let parser = &mut self.parser;
        let (complete, tokens) = guarded(|| {
            let complete = parser.is_accepting();
            match parser.compute_mask() {
                Ok(tokens) => Ok((complete, Some(tokens))),
                Err(_) if complete && parser.stop_reason() == StopReason::NoExtensionBias => Ok((true, None)),
                Err(error) => Err(Refused::internal(error).to_string()),
            }
        })?;
        if let Some(tokens) = tokens {
            for (word, tokens) in mask.iter_mut().zip(tokens.as_slice()) {
                *word |= tokens;
            }
        }
        if complete {
            for &end in &self.vocabulary.ends {
                if let Some(word) = mask.get_mut(end as usize / 32) {
                    *word |= 1 << (end % 32);
                }
            }
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.vocabulary.ends.binary_search(&token).is_ok() {
            self.ended = true;
            return Ok(());
        }
        let parser = &mut self.parser;
        guarded(|| parser.consume_token(token).map(drop).map_err(|error| Refused::internal(error).to_string()))
    }
}
