//! Ctrl-C: ends the program, except while an answer is being written, which it stops.

use crate::failure::{INTERRUPTED, Result, Stop};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// How often those who wait for another thread look whether Ctrl-C was pressed.
pub const LOOK: Duration = Duration::from_millis(50);

/// Ctrl-C ends the program.
const ENDS: u8 = 0;
/// Ctrl-C is noted by the next [`Watch::pressed`].
const WATCHED: u8 = 1;
/// It was pressed while it was watched; once more ends the program.
const PRESSED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(ENDS);

/// Takes over Ctrl-C; to be called once.
pub fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        let watched = STATE.compare_exchange(WATCHED, PRESSED, Ordering::SeqCst, Ordering::SeqCst);
        if watched.is_err() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .map_err(|error| Stop::runtime(format_args!("cannot handle Ctrl-C: {error}")))
}

/// While this lives, Ctrl-C is noted; pressed twice it still ends the program. Inside of another
/// one it notes the same presses, and the outer one goes on when it ends.
pub struct Watch {
    outermost: bool,
}

impl Watch {
    /// Starts to watch.
    pub fn start() -> Watch {
        let outermost = STATE.compare_exchange(ENDS, WATCHED, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        Watch { outermost }
    }

    /// Whether Ctrl-C was pressed since the start.
    pub fn pressed(&self) -> bool {
        STATE.load(Ordering::SeqCst) == PRESSED
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.outermost {
            STATE.store(ENDS, Ordering::SeqCst);
        }
    }
}
