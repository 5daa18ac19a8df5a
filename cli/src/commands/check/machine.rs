//! The machine: what this processor can do, and whether it does it right.

use super::Report;
use serde_json::{Value, json};
use std::fmt;
use std::time::Instant;
use tritone_runtime::isa::{Detected, Isa, Level};
use tritone_runtime::selftest::{self, Outcome};
use tritone_runtime::threads::default_threads;

pub struct Machine {
    /// All levels that this processor has.
    levels: Vec<Level>,
    best: Level,
    threads: usize,
    /// Of each matrix kernel that can run here.
    kernels: Vec<Outcome>,
    /// Of each float operation, for each instruction set it was compiled for.
    floats: Vec<Outcome>,
    seconds: f64,
}

impl Machine {
    /// Runs every kernel of this processor against the definition.
    pub fn examine(report: &mut Report) -> Machine {
        let began = Instant::now();
        tritone_runtime::request_amx();
        let best = Isa::detect();
        let isas: Vec<Isa> =
            Level::ALL.iter().filter_map(|level| Isa::with_level(*level, Detected::here()).ok()).collect();
        let (mut kernels, mut floats) = (Vec::new(), Vec::new());
        // The best level first: it knows what is used by default. It need not have the kernels of
        // all other levels.
        for isa in std::iter::once(&best).chain(&isas) {
            selftest::integers(*isa, &mut |outcome| add(&mut kernels, outcome));
            selftest::floats(*isa, &mut |outcome| add(&mut floats, outcome));
        }
        let seconds = began.elapsed().as_secs_f64();
        for outcome in kernels.iter().chain(&floats).filter(|outcome| !outcome.agrees) {
            report.problem(format!(
                "{} ({}) computes wrong results on this processor: use another level with --isa or TRITONE_ISA, \
                 and report it with the processor's name",
                outcome.name, outcome.level
            ));
        }
        let levels = isas.iter().map(|isa| isa.level()).collect();
        Machine { levels, best: best.level(), threads: default_threads(), kernels, floats, seconds }
    }

    pub fn to_json(&self) -> Value {
        let outcome = |outcome: &Outcome| {
            json!({
                "name": outcome.name,
                "isa": outcome.level,
                "preferred": outcome.preferred,
                "agrees": outcome.agrees,
            })
        };
        json!({
            "levels": self.levels.iter().map(|level| level.name()).collect::<Vec<_>>(),
            "isa": self.best.name(),
            "threads": self.threads,
            "kernels": self.kernels.iter().map(outcome).collect::<Vec<_>>(),
            "float_operations": self.floats.iter().map(outcome).collect::<Vec<_>>(),
            "seconds": self.seconds,
        })
    }
}

/// Adds what is not there yet.
fn add(outcomes: &mut Vec<Outcome>, outcome: Outcome) {
    if !outcomes.iter().any(|known| (known.name, known.level) == (outcome.name, outcome.level)) {
        outcomes.push(outcome);
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.levels.iter().map(|level| level.name()).collect();
        let right = |outcomes: &[Outcome]| outcomes.iter().filter(|outcome| outcome.agrees).count();
        writeln!(f, "machine")?;
        writeln!(f, "  instruction sets: {}; {} is used, on {} threads", names.join(" "), self.best, self.threads)?;
        writeln!(
            f,
            "  {} of {} kernels and {} of {} float operations are right ({:.2} s)",
            right(&self.kernels),
            self.kernels.len(),
            right(&self.floats),
            self.floats.len(),
            self.seconds
        )?;
        let chosen: Vec<&str> =
            self.kernels.iter().filter(|outcome| outcome.preferred).map(|outcome| outcome.name).collect();
        writeln!(f, "  preferred: {}", chosen.join(" "))
    }
}
