//! Who is connected, and who is waiting for whom.
//!
//! There are only so many connections, and only so much memory for what they send and are sent. Where either runs out,
//! whoever has kept us waiting longest is sent away: a client that is silent, sends its body slowly or takes its answer
//! slowly. One that we are at work for keeps its place.

use super::limits::HttpLimits;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until};

/// How often a connection is looked at whose client takes an answer.
const TICK: Duration = Duration::from_secs(1);
/// Whoever got on in so short a time is not sent away for memory.
const GRACE: Duration = Duration::from_secs(1);
/// How long to wait for memory.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long whoever is sent away may take to go, before the next one has to.
const LEAVING: Duration = Duration::from_millis(50);

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// There was no whole head yet.
    New,
    /// Between two requests.
    Idle,
    /// A body is coming.
    Body,
    /// We are at work.
    Work,
    /// The client has to take a piece of an answer.
    Answer,
}

struct Entry {
    /// Nothing for an address that may have all places.
    peer: Option<IpAddr>,
    stage: Stage,
    /// When it came to its stage, or last got on there.
    since: Instant,
    /// Bytes that are held for it.
    held: usize,
    out: Arc<Notify>,
}

/// All connections.
pub(super) struct Seats {
    entries: Mutex<Entries>,
    /// A place is free, or one can be made free.
    changed: Notify,
    total: usize,
    of_one_peer: usize,
    first_head_time: Duration,
    piece_time: Duration,
}

#[derive(Default)]
struct Entries {
    next: u64,
    of: HashMap<u64, Entry>,
}

/// What comes of a wish for a place.
enum Entered {
    Seat(Seat),
    /// The address has all places that it may have, and all are at work.
    Refused,
    /// All places are at work.
    Full,
}

impl Entries {
    /// Sends away whoever has been waited for longest among those that `fits`.
    fn send_away(&mut self, fits: impl Fn(&Entry) -> bool) -> bool {
        let fitting = self.of.iter().filter(|(_, entry)| entry.stage != Stage::Work && fits(entry));
        let Some(id) = fitting.min_by_key(|(_, entry)| entry.since).map(|(id, _)| *id) else { return false };
        if let Some(entry) = self.of.remove(&id) {
            entry.out.notify_one();
        }
        true
    }
}

impl Seats {
    pub(super) fn new(limits: &HttpLimits) -> Seats {
        Seats {
            entries: Mutex::default(),
            changed: Notify::new(),
            total: limits.connections,
            of_one_peer: limits.connections_of_one_peer,
            first_head_time: limits.first_head_time,
            piece_time: limits.piece_time,
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        // Nothing that is done under the lock can fail half way.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection from `address` a place, as soon as there is one; nothing if its address has too many.
    pub(super) async fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Seat> {
        loop {
            match self.try_enter(address) {
                Entered::Seat(seat) => return Some(seat),
                Entered::Refused => return None,
                // What changed since we looked is remembered.
                Entered::Full => self.changed.notified().await,
            }
        }
    }

    fn try_enter(self: &Arc<Self>, address: IpAddr) -> Entered {
        let peer = peer(address);
        let mut entries = self.entries();
        let same = |entry: &Entry| entry.peer.is_some() && entry.peer == peer;
        if entries.of.values().filter(|entry| same(entry)).count() >= self.of_one_peer && !entries.send_away(same) {
            return Entered::Refused;
        }
        if entries.of.len() >= self.total && !entries.send_away(|_| true) {
            return Entered::Full;
        }
        let id = entries.next;
        entries.next += 1;
        let out = Arc::new(Notify::new());
        let since = Instant::now();
        entries.of.insert(id, Entry { peer, stage: Stage::New, since, held: 0, out: Arc::clone(&out) });
        Entered::Seat(Seat { mark: Mark { id, seats: Arc::clone(self) }, out })
    }

    /// Takes memory from a pool. Where it has too little left, those are sent away who hold more than `held` bytes and
    /// have not got on for longest; while `waiting` waits for that, it is not its client who is slow. Nothing if that does
    /// not help.
    pub(super) async fn memory(
        &self,
        pool: &Arc<Semaphore>,
        bytes: usize,
        held: usize,
        waiting: Option<&Mark>,
    ) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(bytes).ok()?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Ok(permit) = Arc::clone(pool).try_acquire_many_owned(wanted) {
                return Some(permit);
            }
            let now = Instant::now();
            if now >= end {
                return None;
            }
            if let Some(mark) = waiting {
                mark.gets_on();
            }
            let slow = |entry: &Entry| entry.held > held && now.saturating_duration_since(entry.since) >= GRACE;
            self.entries().send_away(slow);
            sleep(LEAVING).await;
        }
    }
}

/// Whose places are counted together: a network of IPv6 belongs to one client. A proxy on this machine speaks for many.
fn peer(address: IpAddr) -> Option<IpAddr> {
    match address.to_canonical() {
        address if address.is_loopback() => None,
        IpAddr::V6(address) => Some(IpAddr::V6((address.to_bits() >> 64 << 64).into())),
        address => Some(address),
    }
}

/// The place of a connection; dropping it gives it back.
pub(super) struct Seat {
    mark: Mark,
    out: Arc<Notify>,
}

impl Seat {
    /// What says how the connection gets on.
    pub(super) fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// Waits until the connection has to end: another one wants its place or its memory, or its client is too slow.
    pub(super) async fn lost(&self) {
        loop {
            let now = Instant::now();
            let due = self.mark.due();
            if due.is_some_and(|due| due <= now) {
                return;
            }
            let tick = now + TICK.min(self.mark.seats.piece_time);
            tokio::select! {
                () = self.out.notified() => return,
                () = sleep_until(due.map_or(tick, |due| due.min(tick))) => {}
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Mark { id, seats } = &self.mark;
        seats.entries().of.remove(id);
        seats.changed.notify_one();
    }
}

/// Says how a connection gets on. Where it has lost its place, nobody listens.
#[derive(Clone)]
pub(super) struct Mark {
    id: u64,
    seats: Arc<Seats>,
}

impl Mark {
    /// The connection comes to a stage, where it holds nothing yet.
    pub(super) fn stage(&self, stage: Stage) {
        if let Some(entry) = self.seats.entries().of.get_mut(&self.id) {
            (entry.stage, entry.since, entry.held) = (stage, Instant::now(), 0);
        }
        if stage != Stage::Work {
            self.seats.changed.notify_one();
        }
    }

    /// So many bytes are held for the client. With `got_on` it has sent or taken as many as it must in a while.
    pub(super) fn holds(&self, bytes: usize, got_on: bool) {
        if let Some(entry) = self.seats.entries().of.get_mut(&self.id) {
            entry.held = bytes;
            if got_on {
                entry.since = Instant::now();
            }
        }
    }

    /// Its client is not who is waited for.
    fn gets_on(&self) {
        if let Some(entry) = self.seats.entries().of.get_mut(&self.id) {
            entry.since = Instant::now();
        }
    }

    /// When the connection has to have come to another stage, or to have got on.
    fn due(&self) -> Option<Instant> {
        let entries = self.seats.entries();
        let Some(entry) = entries.of.get(&self.id) else { return Some(Instant::now()) };
        match entry.stage {
            Stage::New => entry.since.checked_add(self.seats.first_head_time),
            Stage::Answer => entry.since.checked_add(self.seats.piece_time),
            // The head of a later request and bodies have times of their own, so that they can be answered.
            Stage::Idle | Stage::Body | Stage::Work => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(connections: usize, of_one_peer: usize) -> Arc<Seats> {
        let limits = HttpLimits {
            connections,
            connections_of_one_peer: of_one_peer,
            piece_time: Duration::from_millis(50),
            ..HttpLimits::default()
        };
        Arc::new(Seats::new(&limits))
    }

    fn enter(seats: &Arc<Seats>, address: &str) -> Result<Seat, &'static str> {
        match seats.try_enter(address.parse().unwrap()) {
            Entered::Seat(seat) => Ok(seat),
            Entered::Refused => Err("refused"),
            Entered::Full => Err("full"),
        }
    }

    fn has_place(seat: &Seat) -> bool {
        seat.mark.seats.entries().of.contains_key(&seat.mark.id)
    }

    #[test]
    fn whoever_kept_us_waiting_longest_gives_way() {
        let seats = seats(3, 3);
        let held: Vec<Seat> = (0..3).map(|_| enter(&seats, "127.0.0.1").unwrap()).collect();
        held[0].mark().stage(Stage::Work);
        held[1].mark().stage(Stage::Idle);
        let fourth = enter(&seats, "127.0.0.1").unwrap();
        assert_eq!(held.iter().map(has_place).collect::<Vec<_>>(), [true, true, false]);
        for seat in [&held[1], &fourth] {
            seat.mark().stage(Stage::Work);
        }
        assert_eq!(enter(&seats, "127.0.0.1").err(), Some("full"));
        drop(fourth);
        assert!(enter(&seats, "127.0.0.1").is_ok());
    }

    #[test]
    fn one_address_does_not_get_all() {
        let seats = seats(10, 2);
        let first = enter(&seats, "2001:db8::1").unwrap();
        let second = enter(&seats, "2001:db8::2").unwrap();
        let other = enter(&seats, "192.0.2.1").unwrap();
        let third = enter(&seats, "2001:db8::3").unwrap();
        assert_eq!([&first, &second, &other, &third].map(has_place), [false, true, true, true]);
        second.mark().stage(Stage::Work);
        third.mark().stage(Stage::Work);
        assert_eq!(enter(&seats, "2001:db8::4").err(), Some("refused"));
        assert!(enter(&seats, "2001:db8:0:1::1").is_ok());
        // A proxy on this machine may have all that is left, by whichever name the system knows it.
        let local: Vec<Seat> = (0..6).map(|_| enter(&seats, "::ffff:127.0.0.1").unwrap()).collect();
        assert!(local.iter().all(has_place));
    }

    #[tokio::test]
    async fn memory_comes_from_those_that_are_slow() {
        let seats = seats(3, 3);
        let pool = Arc::new(Semaphore::new(100));
        let [slow, small, quick] = [(); 3].map(|()| enter(&seats, "127.0.0.1").unwrap());
        for seat in [&slow, &small] {
            seat.mark().stage(Stage::Body);
        }
        quick.mark().stage(Stage::Answer);
        let mut held = Arc::clone(&pool).try_acquire_many_owned(100).ok();
        slow.mark().holds(90, true);
        small.mark().holds(10, true);
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
        for (seat, seconds) in [(&small, 5), (&slow, 4)] {
            seats.entries().of.get_mut(&seat.mark.id).unwrap().since = ago(seconds);
        }
        let leave = async {
            slow.lost().await;
            held.take();
        };
        let (got, ()) = tokio::join!(seats.memory(&pool, 60, 50, None), leave);
        let got = got.unwrap();
        assert_eq!(got.num_permits(), 60);
        assert_eq!([&slow, &small, &quick].map(has_place), [false, true, true]);
        // Nobody else is slow and holds as much.
        assert!(seats.memory(&pool, 60, 50, None).await.is_none());
        // Its client has taken nothing for too long.
        quick.lost().await;
    }
}
