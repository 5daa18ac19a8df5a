//! What one client may cost.

use std::time::Duration;

/// Bounds of connections and bodies. The defaults are for real use; tests have less patience.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Connections at once. One more takes the place of whoever has kept us waiting longest; where all are at work, it
    /// waits until one ends.
    pub connections: usize,
    /// Connections from one address, or from one network of IPv6, counted likewise. This machine's own addresses may
    /// have all: who comes from there mostly is a proxy.
    pub connections_of_one_peer: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or have not been made into jobs. A quarter is kept for their first
    /// 64 KiB each, so that large bodies leave room for small ones.
    pub all_bodies_bytes: usize,
    /// Bytes of all answers above 64 KiB that are complete and have not been taken.
    pub all_answers_bytes: usize,
    /// How long a client may take for the head of its first request.
    pub first_head_time: Duration,
    /// How long it may take for the head of another request, and how long a connection may be idle.
    pub head_time: Duration,
    /// How long a client may take for a body.
    pub body_time: Duration,
    /// How long it may take for each 64 KiB of a body, and to take a piece of an answer, which has at most as many.
    pub piece_time: Duration,
    /// How long a client may take no bytes of an answer while there are some.
    pub write_time: Duration,
    /// After so much silence a stream says that it lives.
    pub ping_time: Duration,
}

impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits {
            connections: 512,
            connections_of_one_peer: 384,
            body_bytes: 8 << 20,
            all_bodies_bytes: 64 << 20,
            all_answers_bytes: 64 << 20,
            first_head_time: Duration::from_secs(10),
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(60),
            piece_time: Duration::from_secs(15),
            write_time: Duration::from_secs(60),
            ping_time: Duration::from_secs(10),
        }
    }
}

/// Bodies and answers of more bytes are large. As many must come, or be taken, in [`HttpLimits::piece_time`].
pub(super) const LARGE: usize = 64 << 10;

/// Of a body that is too long as much is read and thrown away before the answer: most clients listen only after they
/// have said all, and closing before would look to them like a failure of the network.
pub(super) const MAX_THROWN_AWAY: usize = 256 << 20;
