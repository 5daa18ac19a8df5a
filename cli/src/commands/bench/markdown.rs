//! The report as tables.

use super::measure::Profiles;
use super::report::{Report, Run};
use super::spread::Spread;
use std::fmt;
use tritone_runtime::profile::Part;

/// A report for people.
pub struct Markdown<'r>(pub &'r Report);

impl fmt::Display for Markdown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        let processor = report.processor.as_deref().unwrap_or("unknown processor");
        writeln!(f, "{}: {}, {} layers of {}", report.model, report.architecture, report.layers, report.hidden)?;
        writeln!(f, "{processor}, {}, {}, {}", report.isa, report.gemv, report.gemm)?;
        writeln!(f)?;
        speeds(f, report)?;
        writeln!(f)?;
        machine(f, report)?;
        writeln!(f)?;
        bytes(f, report)?;
        for run in &report.runs {
            if let Some(profiles) = &run.speeds.profiles {
                writeln!(f)?;
                profile(f, report, run, profiles)?;
            }
        }
        Ok(())
    }
}

fn speeds(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let (cost, energy) = (report.price_per_hour.is_some(), report.watts.is_some());
    write!(f, "| tokens/s, {} | threads | median | min | max |", plural(report.repeats, "repeat"))?;
    write!(f, "{}", if cost { " cost of 1 M tokens |" } else { "" })?;
    writeln!(f, "{}", if energy { " kWh for 1 M tokens |" } else { "" })?;
    writeln!(f, "|---|---:|---:|---:|---:|{}{}", if cost { "---:|" } else { "" }, if energy { "---:|" } else { "" })?;
    let mut row = |name: &str, threads: usize, speed: Spread| {
        let Spread { median, min, max } = speed;
        write!(f, "| {name} | {threads} | {median:.1} | {min:.1} | {max:.1} |")?;
        if let Some(cost) = report.cost(median) {
            write!(f, " {cost:.4} |")?;
        }
        if let Some(energy) = report.energy(median) {
            write!(f, " {energy:.4} |")?;
        }
        writeln!(f)
    };
    for run in &report.runs {
        row(&format!("prefill {}", report.prompt), run.threads, run.speeds.prefill)?;
    }
    let after = if report.depth > 0 { format!(" after {}", report.depth) } else { String::new() };
    for run in &report.runs {
        row(&format!("decode {}{after}", report.generate), run.threads, run.speeds.decode)?;
    }
    for run in &report.runs {
        for batch in &run.speeds.batches {
            row(&format!("batch of {}{after}", batch.tokens), run.threads, batch.tokens_per_second)?;
        }
    }
    Ok(())
}

fn machine(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    write!(f, "| |")?;
    for run in &report.runs {
        write!(f, " {} |", plural(run.threads, "thread"))?;
    }
    writeln!(f)?;
    writeln!(f, "|---|{}", "---:|".repeat(report.runs.len()))?;
    let mut row = |name: &str, value: &dyn Fn(&Run) -> String| {
        write!(f, "| {name} |")?;
        for run in &report.runs {
            write!(f, " {} |", value(run))?;
        }
        writeln!(f)
    };
    row("first token of a new process, s", &|run| format!("{:.3}", run.cold.first_token_seconds.median))?;
    row("of these, loading", &|run| format!("{:.3}", run.cold.load_seconds.median))?;
    row("peak memory, MB", &|run| match run.cold.peak_memory {
        Some(bytes) => format!("{:.1}", bytes as f64 / 1e6),
        None => "not told by this system (no /proc)".to_owned(),
    })?;
    let needed = (report.weight_bytes + report.peak_cache_bytes) as f64 / 1e6;
    row("weights and cache then, MB", &|_| format!("{needed:.1}"))?;
    let gb = |bytes: f64| format!("{:.2}", bytes / 1e9);
    for run in report.runs.iter().take(1) {
        let size = run.ceilings.weights.buffer_bytes as f64 / 1e6;
        row(&format!("reading {size:.0} MB, as much as the weights, GB/s"), &|run| {
            gb(run.ceilings.weights.bytes_per_second.max)
        })?;
        if let Some(memory) = &run.ceilings.memory {
            let size = memory.buffer_bytes as f64 / 1e6;
            row(&format!("reading {size:.0} MB, memory, GB/s"), &|run| {
                run.ceilings.memory.as_ref().map(|memory| gb(memory.bytes_per_second.max)).unwrap_or_default()
            })?;
        }
    }
    let share = |share: Option<f64>| share.map_or_else(|| "all".to_owned(), |share| format!("{:.1}%", 100.0 * share));
    row("rows of up that decode needs", &|run| share(run.speeds.density.up_rows))?;
    row("columns of down that decode needs", &|run| share(run.speeds.density.down_columns))?;
    let of_head =
        |share: Option<f64>| share.map_or_else(|| "all, no copy".to_owned(), |share| format!("{:.3}%", 100.0 * share));
    row("rows of the head left after 4 bits of its copy", &|run| of_head(run.speeds.density.head_low_rows))?;
    row("rows of the head that decode computes", &|run| of_head(run.speeds.density.head_rows))?;
    row("decode reads, MB a token", &|run| format!("{:.1}", run.token_bytes.total() as f64 / 1e6))?;
    row("decode reads, GB/s", &|run| gb(run.token_bytes.total() as f64 * run.speeds.decode.median))?;
    row("share of the bandwidth", &|run| format!("{:.0}%", 100.0 * report.bandwidth_share(run)))?;
    row(&format!("{} in cache, GMAC/s", report.gemv), &|run| gb(run.ceilings.gemv.macs_per_second))?;
    row(&format!("{} in cache, GB/s", report.gemv), &|run| gb(run.ceilings.gemv.weight_bytes_per_second))?;
    row(&format!("{} in cache, GMAC/s", report.gemm), &|run| gb(run.ceilings.gemm.macs_per_second))
}

fn bytes(f: &mut fmt::Formatter<'_>, report: &Report) -> fmt::Result {
    let Some(run) = report.runs.last() else { return Ok(()) };
    writeln!(f, "| read for a token, {} before it | MB in all | MB read | share |", report.context)?;
    writeln!(f, "|---|---:|---:|---:|")?;
    let (all, read) = (report.token_bytes, run.token_bytes);
    let total = read.total();
    let totals = [("total", all.total(), total)];
    let parts = all.parts().into_iter().zip(read.parts()).map(|((part, all), (_, read))| (part, all, read));
    for (part, all, read) in parts.chain(totals) {
        let share = 100.0 * read as f64 / total as f64;
        writeln!(f, "| {part} | {:.3} | {:.3} | {share:.1}% |", all as f64 / 1e6, read as f64 / 1e6)?;
    }
    Ok(())
}

fn profile(f: &mut fmt::Formatter<'_>, report: &Report, run: &Run, profiles: &Profiles) -> fmt::Result {
    writeln!(f, "| microseconds for a token, {} | prefill | share | decode | share |", plural(run.threads, "thread"))?;
    writeln!(f, "|---|---:|---:|---:|---:|")?;
    let runs = [&profiles.prefill, &profiles.decode];
    let row = |f: &mut fmt::Formatter<'_>, name: &str, seconds: [f64; 2]| {
        write!(f, "| {name} |")?;
        for (profiled, seconds) in runs.iter().zip(seconds) {
            let share = 100.0 * seconds * profiled.tokens as f64 / profiled.seconds;
            write!(f, " {:.1} | {share:.1}% |", 1e6 * seconds)?;
        }
        writeln!(f)
    };
    for part in Part::ALL {
        row(f, part.name(), runs.map(|profiled| profiled.seconds_per_token(part)))?;
    }
    row(f, "outside", runs.map(|profiled| profiled.outside()))?;
    let densities = runs.map(|profiled| profiled.profile.positive_gates());
    if let ([Some(prefill), Some(decode)], true) = (densities, report.relu_squared) {
        writeln!(f)?;
        writeln!(f, "Positive gates: {:.1}% in prefill, {:.1}% in decode.", 100.0 * prefill, 100.0 * decode)?;
    }
    Ok(())
}

fn plural(n: usize, name: &str) -> String {
    if n == 1 { format!("1 {name}") } else { format!("{n} {name}s") }
}
