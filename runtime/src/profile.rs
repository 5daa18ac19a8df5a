//! Where the time of a forward pass goes.
//!
//! The pass is generic over an `Observer`. With `Off` every call is empty and nothing of it is
//! left in the compiled code; with a [`Profile`] each step ends with a lap. No observer sees more
//! than finished values, so it cannot change a result.

use crate::batch::Batch;
use crate::session::Session;
use std::time::Instant;

/// A part of the work on a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// RMS norms, those of heads and of the output included.
    Norms,
    /// Rounding activations to int8 and preparing them for the kernels.
    Quantise,
    /// The products of queries, keys and values.
    Qkv,
    /// Rotating queries and keys, storing keys and values.
    Rope,
    /// Attention over the cache.
    Attention,
    /// The product after attention.
    Output,
    /// The products of gate and up.
    GateUp,
    /// What stands between gate and up.
    Activation,
    /// The product back to the residual stream.
    Down,
    /// Logits from the last hidden state.
    Head,
    /// Embedding rows, rotary tables, sums of the residual stream.
    Other,
}

impl Part {
    /// All parts, in the order of a layer.
    pub const ALL: [Part; 11] = [
        Part::Norms,
        Part::Quantise,
        Part::Qkv,
        Part::Rope,
        Part::Attention,
        Part::Output,
        Part::GateUp,
        Part::Activation,
        Part::Down,
        Part::Head,
        Part::Other,
    ];

    /// A short name for tables and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Part::Norms => "norms",
            Part::Quantise => "quantise",
            Part::Qkv => "qkv",
            Part::Rope => "rope",
            Part::Attention => "attention",
            Part::Output => "output",
            Part::GateUp => "gate_up",
            Part::Activation => "activation",
            Part::Down => "down",
            Part::Head => "head",
            Part::Other => "other",
        }
    }
}

/// What a forward pass tells about its progress.
pub(crate) trait Observer {
    /// A point in time.
    type Moment: Copy;
    /// Whether [`Observer::gates`] wants to hear anything.
    const COUNTS_GATES: bool;
    /// Now, on any thread.
    fn now() -> Self::Moment;
    /// Nanoseconds since a moment.
    fn nanos_since(moment: Self::Moment) -> u64;
    /// Work begins.
    fn start(&mut self);
    /// The time since the last lap, or since the start, was spent on `part`.
    fn lap(&mut self, part: Part);
    /// The same for parts that were done together, shared as their nanoseconds on all threads are.
    fn lap_shared<const N: usize>(&mut self, parts: [(Part, u64); N]);
    /// How many gates of a layer were positive, of how many.
    fn gates(&mut self, positive: u64, all: u64);
}

/// Nobody wants to know.
pub(crate) struct Off;

impl Observer for Off {
    type Moment = ();
    const COUNTS_GATES: bool = false;

    fn now() {}

    fn nanos_since((): ()) -> u64 {
        0
    }

    fn start(&mut self) {}

    fn lap(&mut self, _: Part) {}

    fn lap_shared<const N: usize>(&mut self, _: [(Part, u64); N]) {}

    fn gates(&mut self, _: u64, _: u64) {}
}

/// Times by part, and how many gates were positive. See [`Session::start_profile`].
#[derive(Clone, Debug)]
pub struct Profile {
    last: Instant,
    nanos: [u64; Part::ALL.len()],
    gates: u64,
    positive_gates: u64,
}

impl Profile {
    fn new() -> Profile {
        Profile { last: Instant::now(), nanos: [0; Part::ALL.len()], gates: 0, positive_gates: 0 }
    }

    /// Seconds spent on a part, as the calling thread saw them pass.
    #[must_use]
    pub fn seconds(&self, part: Part) -> f64 {
        self.nanos[part as usize] as f64 / 1e9
    }

    /// Seconds spent on all parts. Checks and the choice of tokens are no part.
    #[must_use]
    pub fn total_seconds(&self) -> f64 {
        self.nanos.iter().sum::<u64>() as f64 / 1e9
    }

    /// Share of the gates that were positive; with relu^2 the others switch a row of up off.
    /// Nothing before the first token.
    #[must_use]
    pub fn positive_gates(&self) -> Option<f64> {
        (self.gates > 0).then(|| self.positive_gates as f64 / self.gates as f64)
    }

    /// Nanoseconds since the last lap, which ends now.
    fn since_last(&mut self) -> u64 {
        let now = Instant::now();
        let nanos = nanos(now - self.last);
        self.last = now;
        nanos
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Observer for Profile {
    type Moment = Instant;
    const COUNTS_GATES: bool = true;

    fn now() -> Instant {
        Instant::now()
    }

    fn nanos_since(moment: Instant) -> u64 {
        nanos(moment.elapsed())
    }

    fn start(&mut self) {
        self.last = Instant::now();
    }

    fn lap(&mut self, part: Part) {
        self.nanos[part as usize] += self.since_last();
    }

    fn lap_shared<const N: usize>(&mut self, parts: [(Part, u64); N]) {
        let passed = self.since_last();
        let (mut left, mut nanos_left) = (passed, parts.iter().map(|(_, nanos)| nanos).sum::<u64>());
        for (part, nanos) in parts {
            // The last one gets what is left, so nothing is lost.
            let share = if nanos == nanos_left { 1.0 } else { nanos as f64 / nanos_left as f64 };
            let own = ((left as f64 * share) as u64).min(left);
            self.nanos[part as usize] += own;
            (left, nanos_left) = (left - own, nanos_left - nanos);
        }
    }

    fn gates(&mut self, positive: u64, all: u64) {
        self.gates += all;
        self.positive_gates += positive;
        // Counting is no part of the work.
        self.start();
    }
}

impl Session {
    /// Times the parts of all work from now on. It changes no result.
    pub fn start_profile(&mut self) {
        self.steps.profile = Some(Profile::new());
    }

    /// Ends the profile, if one was started, and returns it.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.steps.profile.take()
    }
}

impl Batch {
    /// Times the parts of all steps from now on. It changes no result.
    pub fn start_profile(&mut self) {
        self.steps.profile = Some(Profile::new());
    }

    /// Ends the profile, if one was started, and returns it.
    pub fn take_profile(&mut self) -> Option<Profile> {
        self.steps.profile.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Activation;
    use crate::model::{LoadOptions, Model, Source};
    use std::path::PathBuf;

    fn model(name: &str) -> Model {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/models").join(name);
        let options = LoadOptions { threads: Some(2), ..LoadOptions::default() };
        Model::load(Source::File(path), &options, &mut |_| {}).unwrap()
    }

    fn bits(logits: &[f32]) -> Vec<u32> {
        logits.iter().map(|logit| logit.to_bits()).collect()
    }

    #[test]
    fn a_profile_changes_no_bit() {
        for name in
            ["bitnet-relu2/model-i2_s.gguf", "llama-silu-bitlinear/model-tq1_0.gguf", "qwen3-group128/model-q2_0.gguf"]
        {
            let model = model(name);
            let tokens: Vec<u32> = (1..80).map(|i| i * 37 % model.config().vocab_size as u32).collect();
            let mut plain = model.session(None).unwrap();
            let mut profiled = model.session(None).unwrap();
            profiled.start_profile();
            let expected = bits(plain.prefill(&tokens, 0).unwrap());
            assert_eq!(bits(profiled.prefill(&tokens, 0).unwrap()), expected, "{name}");
            let expected = bits(plain.decode(7).unwrap());
            assert_eq!(bits(profiled.decode(7).unwrap()), expected, "{name}");
            assert!(plain.take_profile().is_none());

            let profile = profiled.take_profile().unwrap();
            // relu^2 is applied while up is multiplied.
            let relu2 = model.config().activation == Activation::ReluSquared;
            for part in Part::ALL.into_iter().filter(|part| !(relu2 && *part == Part::Activation)) {
                assert!(profile.seconds(part) > 0.0, "{name}: {}", part.name());
            }
            let density = profile.positive_gates().unwrap();
            assert!(density > 0.0 && density < 1.0, "{name}: {density}");
            assert!(profiled.take_profile().is_none());
        }
    }

    #[test]
    fn time_of_parts_is_shared() {
        let mut profile = Profile::new();
        std::thread::sleep(std::time::Duration::from_millis(4));
        profile.lap_shared([(Part::Norms, 300), (Part::Quantise, 100)]);
        let (norms, quantise) = (profile.seconds(Part::Norms), profile.seconds(Part::Quantise));
        assert!((norms / quantise - 3.0).abs() < 1e-3, "{norms} {quantise}");
        assert!((norms + quantise - profile.total_seconds()).abs() < 1e-12);
        assert_eq!(profile.positive_gates(), None);
    }
}
