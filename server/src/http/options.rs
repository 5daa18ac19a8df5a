//! How a server runs, and why it does not.

use super::hosts::Hosts;
use super::keys::Keys;
use super::limits::HttpLimits;
use crate::engine::{EngineOptions, StartError};
use axum::http::HeaderValue;
use std::time::Duration;

/// How a server runs.
#[derive(Clone)]
pub struct ServeOptions {
    /// The address to listen on, or a name for it.
    pub host: String,
    /// The port; 0 for any that is free.
    pub port: u16,
    /// What the model is called.
    pub name: String,
    /// How the model runs.
    pub engine: EngineOptions,
    /// Who may ask.
    pub keys: Keys,
    /// Whose pages may ask from a browser, beside our own.
    pub origins: Origins,
    /// What the server may be called in requests where only this machine reaches it and no key is wanted.
    pub hosts: Hosts,
    /// How long an answer may take, its time in the queue included.
    pub timeout: Duration,
    /// How long answers may go on when the server is to end.
    pub grace: Duration,
    /// What one client may cost.
    pub limits: HttpLimits,
}

impl ServeOptions {
    /// For who asks without a connection: what is said of addresses, keys and times does not matter then.
    pub(super) fn without_connections(name: String, engine: EngineOptions) -> ServeOptions {
        ServeOptions {
            host: String::new(),
            port: 0,
            name,
            engine,
            keys: Keys::default(),
            origins: Origins::None,
            hosts: Hosts::default(),
            timeout: Duration::MAX,
            grace: Duration::ZERO,
            limits: HttpLimits::default(),
        }
    }
}

/// Origins whose pages may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// None but our own.
    #[default]
    None,
    /// All.
    Any,
    /// These.
    List(Vec<HeaderValue>),
}

/// A text that is no origin.
#[derive(Debug, thiserror::Error)]
#[error("'{}' is no origin; one is * or looks like https://example.org, without a path", .0.escape_debug())]
pub struct OriginsError(String);

impl Origins {
    /// Reads origins; `*` is all.
    ///
    /// # Errors
    /// What is not a scheme and a host, perhaps with a port.
    pub fn parse(texts: &[String]) -> Result<Origins, OriginsError> {
        if texts.iter().any(|text| text == "*") {
            return Ok(Origins::Any);
        }
        let origins = texts.iter().map(|text| {
            let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://")).unwrap_or_default();
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-.:[]".contains(&byte);
            if host.is_empty() || !host.bytes().all(fits) {
                return Err(OriginsError(text.clone()));
            }
            HeaderValue::from_str(text).map_err(|_| OriginsError(text.clone()))
        });
        let origins: Vec<HeaderValue> = origins.collect::<Result<_, _>>()?;
        Ok(if origins.is_empty() { Origins::None } else { Origins::List(origins) })
    }
}

/// Why a server ended, or did not begin. `E` is why there is no model.
#[derive(Debug, thiserror::Error)]
pub enum ServeError<E> {
    /// The model was not loaded.
    #[error("the model was not loaded")]
    Load(E),
    /// The model cannot be run like that.
    #[error(transparent)]
    Start(StartError),
    /// The address cannot be had.
    #[error("cannot listen on {address} ({source})")]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The system gives no threads or signals.
    #[error("the system refused what a server needs ({0})")]
    System(std::io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_a_scheme_and_a_host() {
        let parse = |texts: &[&str]| Origins::parse(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&[]).unwrap(), Origins::None);
        assert_eq!(parse(&["http://a.org", "*"]).unwrap(), Origins::Any);
        assert!(
            matches!(parse(&["http://localhost:3000", "https://[::1]"]).unwrap(), Origins::List(list) if list.len() == 2)
        );
        for wrong in ["", "example.org", "https://", "https://a.org/", "https://a org", "ftp://a.org", "http://a\r\n"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }
}
