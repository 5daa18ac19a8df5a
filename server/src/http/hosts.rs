//! Which names a request may call a server by that only this machine reaches and that wants no key.
//!
//! A page from anywhere can let its own name point to 127.0.0.1 once it is loaded (DNS rebinding): for the browser our
//! answers are then its own. But the name is in `Host`. Such a page needs a name of the public DNS, which has a dot;
//! addresses, `localhost` and names without a dot, such as that of an upstream in nginx, cannot be had for that.

use crate::api::error::ApiError;
use axum::http::header::HOST;
use axum::http::{HeaderMap, HeaderValue};
use std::net::{IpAddr, Ipv6Addr};

/// Names that requests may use beside those of this machine; in small letters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hosts(Vec<String>);

/// A text that is no name of a host.
#[derive(Debug, thiserror::Error)]
#[error("'{}' is no name of a host; one looks like example.org, without a scheme, a port or a path", .0.escape_debug())]
pub struct HostsError(String);

impl Hosts {
    /// Reads names.
    ///
    /// # Errors
    /// What has other characters than names have.
    pub fn parse(texts: &[String]) -> Result<Hosts, HostsError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let names = texts.iter().map(|text| {
            if text.is_empty() || !text.bytes().all(fits) {
                return Err(HostsError(text.clone()));
            }
            Ok(name_of(text).to_ascii_lowercase())
        });
        names.collect::<Result<_, _>>().map(Hosts)
    }

    /// Refuses requests under names that a page could have made point here. Browsers always send one.
    pub(super) fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        for host in headers.get_all(HOST) {
            if !self.admits(host) {
                let shown: String = String::from_utf8_lossy(host.as_bytes()).chars().take(100).collect();
                let message = format!(
                    "the host `{}` is none of this server's; call it localhost, or start it with --allow-host",
                    shown.escape_debug()
                );
                return Err(ApiError::new(421, "invalid_request_error", message).coded("misdirected_request"));
            }
        }
        Ok(())
    }

    fn admits(&self, host: &HeaderValue) -> bool {
        let Ok(host) = host.to_str() else { return false };
        if let Some(address) = host.strip_prefix('[') {
            return address.split_once(']').is_some_and(|(address, port)| {
                (port.is_empty() || port.starts_with(':')) && address.parse::<Ipv6Addr>().is_ok()
            });
        }
        let name = name_of(host.rsplit_once(':').map_or(host, |(name, _)| name)).to_ascii_lowercase();
        name.parse::<IpAddr>().is_ok() || !name.contains('.') || name.ends_with(".localhost") || self.0.contains(&name)
    }
}

/// A name without the dot that says that it is complete.
fn name_of(text: &str) -> &str {
    text.strip_suffix('.').unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_pages_can_have_are_refused() {
        let hosts = Hosts::parse(&["Models.Example.org".to_owned()]).unwrap();
        let check = |host: &str| {
            let headers = [(HOST, HeaderValue::from_str(host).unwrap())].into_iter().collect();
            hosts.check(&headers).map_err(|error| (error.status, error.message))
        };
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "192.0.2.7",
            "tritone",
            "tritone:80",
            "a.localhost",
            "models.example.org:8080",
            "models.EXAMPLE.org.",
            "",
        ] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
        for host in [
            "example.org",
            "evil.example:8080",
            "evil.example.",
            "127.0.0.1.evil.example",
            "[::1].evil.example",
            "[x]",
            "a.b:c:d",
        ] {
            let (status, message) = check(host).unwrap_err();
            assert!(status == 421 && message.contains(host), "{host}: {message}");
        }
        assert!(hosts.check(&HeaderMap::new()).is_ok());
        let mut two = HeaderMap::new();
        two.append(HOST, HeaderValue::from_static("localhost"));
        two.append(HOST, HeaderValue::from_static("evil.example"));
        assert!(hosts.check(&two).is_err());
        for wrong in ["", "http://a.org", "a.org:80", "a.org/", "a b", "*"] {
            assert!(Hosts::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
