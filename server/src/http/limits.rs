//! What one client may cost.

use std::time::Duration;

/// Bounds of connections and bodies. The defaults are for real use; tests have less patience.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Connections at once; others wait until one ends.
    pub connections: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Bytes of all bodies that are being read or have not been made into jobs.
    pub all_bodies_bytes: usize,
    /// How long a client may take for the head of a request, and how long a connection may be idle.
    pub head_time: Duration,
    /// How long a client may take for a body.
    pub body_time: Duration,
    /// How long a client may take no bytes of an answer while there are some.
    pub write_time: Duration,
    /// After so much silence a stream says that it lives.
    pub ping_time: Duration,
    /// How long the last bytes of answers may take when the server ends.
    pub last_writes: Duration,
}

impl Default for HttpLimits {
    fn default() -> HttpLimits {
        HttpLimits {
            connections: 512,
            body_bytes: 8 << 20,
            all_bodies_bytes: 64 << 20,
            head_time: Duration::from_secs(30),
            body_time: Duration::from_secs(60),
            write_time: Duration::from_secs(60),
            ping_time: Duration::from_secs(10),
            last_writes: Duration::from_secs(5),
        }
    }
}

/// Of a body that is too long as much is read and thrown away before the answer: most clients listen only after they
/// have said all, and closing before would look to them like a failure of the network.
pub(super) const MAX_THROWN_AWAY: usize = 256 << 20;
