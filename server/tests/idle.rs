//! An engine without work takes no processor time. In a process of its own, whose time can be measured.
#![cfg(target_os = "linux")]

use std::path::PathBuf;
use std::time::Duration;
use tritone_runtime::model::{LoadOptions, Model, Source};
use tritone_runtime::sampler::SamplerConfig;
use tritone_server::engine::job::{Event, Job};
use tritone_server::engine::{Engine, EngineOptions};

/// Ticks that this process has worked, in its own code and in the system's; a tick is 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // Behind the name, which may have spaces, utime and stime are the twelfth and thirteenth field.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

#[test]
fn an_idle_engine_sleeps() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/story.gguf");
    let model = Model::load(Source::File(path), &LoadOptions::default(), &mut |_| {}).unwrap();
    let engine = Engine::start(model, &EngineOptions::default()).unwrap();
    for _ in 0..2 {
        let job = Job {
            prompt: vec![1, 2, 3],
            n: 1,
            max_tokens: Some(5),
            sampler: SamplerConfig::default(),
            logit_bias: Vec::new(),
            stop: Vec::new(),
            ignore_eos: true,
            logprobs: None,
            constraint: None,
            deadline: None,
        };
        let mut receiver = engine.submit(job).unwrap();
        while !matches!(receiver.blocking_recv(), Some(Event::Done(_))) {}
        let before = ticks();
        std::thread::sleep(Duration::from_millis(600));
        let spent = ticks() - before;
        assert!(spent <= 3, "{spent} ticks of 60");
    }
}
