//! Finds stop strings in streamed text.
//!
//! Each stop string runs its own Knuth-Morris-Pratt automaton over the bytes: its state is the length of the longest
//! end of the text so far that is a beginning of the string. The longest state of all is exactly the text that must be
//! held back, and a string has ended when its state is its length. A byte costs a constant number of steps per stop string,
//! amortised.

use crate::error::Error;

/// Why a list of stop strings is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// An empty string would stop everything at once.
    #[error("stop string {0} is empty: leave it out or give it at least one character")]
    Empty(usize),
    /// More than [`StopStrings::MAX_STRINGS`] strings.
    #[error("{0} stop strings are given, the limit is {max}", max = StopStrings::MAX_STRINGS)]
    TooMany(usize),
    /// A string longer than [`StopStrings::MAX_BYTES`].
    #[error("stop string {index} has {bytes} bytes, the limit is {max}", max = StopStrings::MAX_BYTES)]
    TooLong {
        /// Position in the list, from 0.
        index: usize,
        /// Its length.
        bytes: usize,
    },
}

impl From<StopError> for Error {
    fn from(error: StopError) -> Self {
        let (value, rule) = match error {
            StopError::Empty(_) => ("empty".into(), "it needs at least one character".into()),
            StopError::TooMany(count) => {
                (format!("given {count} times"), format!("at most {} are allowed", StopStrings::MAX_STRINGS))
            }
            StopError::TooLong { bytes, .. } => {
                (format!("{bytes} bytes long"), format!("at most {} are allowed", StopStrings::MAX_BYTES))
            }
        };
        Error::InvalidOption { option: "the stop string", value, rule }
    }
}

#[derive(Debug, Clone)]
struct Pattern {
    text: Vec<u8>,
    /// `fallback[n]`: length of the longest proper beginning of `text[..=n]` that is also its end.
    fallback: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let text = text.as_bytes().to_vec();
        let mut fallback = vec![0; text.len()];
        for i in 1..text.len() {
            let mut n = fallback[i - 1];
            while n > 0 && text[n] != text[i] {
                n = fallback[n - 1];
            }
            fallback[i] = n + usize::from(text[n] == text[i]);
        }
        Self { text, fallback, matched: 0 }
    }

    /// Takes one byte; true when the string has just ended.
    fn step(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.text[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.text[self.matched] == byte);
        self.matched == self.text.len()
    }
}

/// Watches streamed text for stop strings and holds back what may be the beginning of one.
///
/// The text ends where the first stop string to be completed begins (the longest, if several end on the same
/// character). What comes out does not depend on how the text is cut into pieces.
///
/// ```
/// use tritone_runtime::tokenizer::StopStrings;
/// let mut stop = StopStrings::new(["\nUser:"])?;
/// assert_eq!(stop.push("Hello\nUs"), "Hello");
/// assert_eq!(stop.push("er: hi"), "");
/// assert!(stop.stopped());
/// # Ok::<(), tritone_runtime::tokenizer::StopError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// Text that may still turn out to begin a stop string.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// The most strings one matcher takes.
    pub const MAX_STRINGS: usize = 64;
    /// The most bytes one string may have.
    pub const MAX_BYTES: usize = 4096;

    /// A matcher for `strings`; an empty list lets everything through.
    ///
    /// # Errors
    /// An empty string, or a list or a string over the limits.
    pub fn new<S: AsRef<str>>(strings: impl IntoIterator<Item = S>) -> Result<Self, StopError> {
        let mut patterns = Vec::new();
        let mut count = 0;
        for (index, string) in strings.into_iter().enumerate() {
            let string = string.as_ref();
            count = index + 1;
            if string.is_empty() {
                return Err(StopError::Empty(index));
            }
            if string.len() > Self::MAX_BYTES {
                return Err(StopError::TooLong { index, bytes: string.len() });
            }
            if count <= Self::MAX_STRINGS {
                patterns.push(Pattern::new(string));
            }
        }
        if count > Self::MAX_STRINGS {
            return Err(StopError::TooMany(count));
        }
        Ok(Self { patterns, held: String::new(), stopped: false })
    }

    /// Takes the next text and returns what can be shown. Once a stop string was seen, returns nothing more.
    pub fn push(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (i, byte) in text.bytes().enumerate() {
            let mut ended = 0;
            for pattern in &mut self.patterns {
                if pattern.step(byte) {
                    ended = ended.max(pattern.text.len());
                }
            }
            if ended > 0 {
                self.stopped = true;
                // A state never exceeds the bytes seen since the text held back began, so this cannot underflow.
                let shown = before + i + 1 - ended;
                let mut held = std::mem::take(&mut self.held);
                held.truncate(shown);
                return held;
            }
        }
        let hold = self.patterns.iter().map(|p| p.matched).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - hold);
        std::mem::replace(&mut self.held, held)
    }

    /// Whether a stop string was seen.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Ends the text: returns what was held back, since no stop string came of it, and starts afresh.
    pub fn finish(&mut self) -> String {
        for pattern in &mut self.patterns {
            pattern.matched = 0;
        }
        self.stopped = false;
        std::mem::take(&mut self.held)
    }
}
