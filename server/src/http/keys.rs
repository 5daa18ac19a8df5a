//! Keys that clients must name.

use subtle::{Choice, ConstantTimeEq};

/// The fewest characters of a key: shorter ones can be guessed.
const MIN_KEY: usize = 8;

/// Which keys open the server; without any it is open. They are never shown.
#[derive(Clone, Default)]
pub struct Keys(Vec<Box<[u8]>>);

/// Why keys are refused. It does not quote them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// No key at all.
    #[error("there is no key in it; write one a line")]
    None,
    /// A key that a header cannot carry or that is too short.
    #[error("line {0} is no key: it must have {MIN_KEY} or more ASCII characters and no spaces")]
    Malformed(usize),
}

impl Keys {
    /// Keys of a text, one a line. Empty lines and lines that begin with `#` are none.
    ///
    /// # Errors
    /// No keys, and keys that no client could send or that are too short.
    pub fn parse(text: &str) -> Result<Keys, KeysError> {
        let lines = text.lines().map(str::trim).enumerate();
        let mut keys = Vec::new();
        for (i, key) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            if key.len() < MIN_KEY || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(KeysError::Malformed(i + 1));
            }
            keys.push(key.as_bytes().into());
        }
        if keys.is_empty() { Err(KeysError::None) } else { Ok(Keys(keys)) }
    }

    /// Whether anybody may ask.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a header `Authorization` names one of the keys. The time that it takes tells nothing but lengths.
    pub(super) fn admit(&self, header: Option<&[u8]>) -> bool {
        let given = header.and_then(|header| {
            let (scheme, key) = header.split_at_checked(b"bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
        });
        let given = given.unwrap_or_default();
        let found = self.0.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(given));
        self.is_open() || found.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_keys_open() {
        let keys = Keys::parse("# mine\nfirst-key\n\n second-key \n").unwrap();
        for good in ["Bearer first-key", "bearer second-key", "BEARER  first-key "] {
            assert!(keys.admit(Some(good.as_bytes())), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer first-ke", "Bearer first-key2", "Basic first-key", "first-key"] {
            assert!(!keys.admit(Some(bad.as_bytes())), "{bad}");
        }
        assert!(!keys.admit(None) && !keys.admit(Some(b"Bearer \xff")));
        assert!(Keys::default().admit(None));
    }

    #[test]
    fn files_without_keys_are_refused() {
        assert!(matches!(Keys::parse("\n# none\n"), Err(KeysError::None)));
        for (text, line) in [("short", 1), ("good-enough\nwith space", 2), ("good-enough\n\nschlüssel", 3)] {
            assert!(matches!(Keys::parse(text), Err(KeysError::Malformed(found)) if found == line), "{text}");
        }
    }
}
