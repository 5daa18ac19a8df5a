//! Arbitrary chat templates, in pieces of the language and byte by byte. Whatever they do ends in time and in little memory,
//! and what they say of their own failure is one line.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use std::time::{Duration, Instant};
use tritone_runtime::template::{ChatTemplate, Message};

/// Compiling and rendering have three seconds each; the rest is for a slow machine.
const LONGEST: Duration = Duration::from_secs(10);
/// The budget pays for 64 bytes a step: 30,000 steps, and as many again for what the messages are allowed.
const LARGEST: usize = 8 << 20;

#[derive(Debug, Arbitrary)]
enum Input<'a> {
    Text(&'a str),
    Pieces(Vec<u8>),
}

const PIECES: [&str; 48] = [
    "{% for m in messages %}",
    "{% for i in range(1000) %}",
    "{% for a in x recursive %}",
    "{{ loop(x) }}",
    "{% endfor %}",
    "{% if add_generation_prompt %}",
    "{% elif x is defined %}",
    "{% else %}",
    "{% endif %}",
    "{% set x = 'abc' * 1000 %}",
    "{% set x = x ~ x %}",
    "{% set x = [x, x] %}",
    "{% set x = x + x %}",
    "{% set x = {'a': x, 'b': x} %}",
    "{% set ns = namespace(v='a') %}",
    "{% set ns.v = ns.v ~ ns.v %}",
    "{% set x %}",
    "{% endset %}",
    "{% macro f(a) %}",
    "{{ f(f) }}",
    "{{ f(x) }}",
    "{% endmacro %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% raw %}",
    "{% endraw %}",
    "{% break %}",
    "{% continue %}",
    "{{ m.role }}",
    "{{ m['content'] | trim }}",
    "{{ m.content.split('a') | join('bb') }}",
    "{{ messages | tojson(indent=4) }}",
    "{{ x | tojson }}",
    "{{ x | replace('a', 'bbbbbbbb') }}",
    "{{ x.replace('a', x) }}",
    "{{ x | join(x) }}",
    "{{ x | list | sort | reverse }}",
    "{{ x[::-1] }}",
    "{{ x | indent(1000) }}",
    "{{ '%1000000s' | format(x) }}",
    "{{ 'a' | center(1000000) }}",
    "{{ range(10000) | list | length }}",
    "{{ (x, x) | batch(2) | list }}",
    "{{ strftime_now('%d %b %Y') }}",
    "{{ raise_exception('no') }}",
    "{{ 9999999999 ** 99 }}",
    "{{ bos_token }}",
    "text\n",
];

fuzz_target!(|input: Input<'_>| {
    let source = match input {
        Input::Text(text) => text.to_owned(),
        Input::Pieces(pieces) => pieces.iter().map(|&piece| PIECES[usize::from(piece) % PIECES.len()]).collect(),
    };
    let talk =
        [Message::new("system", "Be brief."), Message::new("user", "aäa "), Message::new("assistant", "{{ x }}")];
    let began = Instant::now();
    let rendered = ChatTemplate::new(&source, "<s>", "</s>").and_then(|template| template.render(&talk, true));
    assert!(began.elapsed() < LONGEST, "{:?}", began.elapsed());
    match rendered {
        Ok(text) => assert!(text.len() <= LARGEST, "{} bytes", text.len()),
        Err(error) => assert!(!error.to_string().contains('\n'), "{error}"),
    }
});
