//! Chat templates that try to use up time or memory, all in one process, so that its peak can be measured.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tritone_runtime::template::{ChatTemplate, Message};

/// What the whole budget of fuel takes, five times over.
const LONGEST: Duration = Duration::from_secs(1);
/// 480 KB is the largest value, and some characters print as four or six.
const LONGEST_OUTPUT: usize = 4 << 20;

fn talk() -> Vec<Message> {
    vec![Message::new("system", "Be brief."), Message::new("user", "aäa "), Message::new("assistant", "{{ x }}")]
}

/// Renders; whatever comes of it must come soon, and an error must be one line.
fn attack(source: &str) -> Result<String, String> {
    let began = Instant::now();
    let rendered = ChatTemplate::new(source, "<s>", "</s>").and_then(|template| template.render(&talk(), true));
    let took = began.elapsed();
    let shown: String = source.chars().take(200).collect();
    assert!(took < LONGEST, "{took:?} for {shown}");
    rendered
        .inspect(|text| assert!(text.len() <= LONGEST_OUTPUT, "{} bytes of {shown}", text.len()))
        .map_err(|error| error.to_string())
        .inspect_err(|error| assert!(!error.contains('\n') && !error.contains("is not done"), "{error}: {shown}"))
}

/// Uses of a large `x` that end with an error.
const USES: [&str; 33] = [
    "{{ x }}",
    "{{ x ~ '' }}",
    "{{ '' ~ x }}",
    "{{ x | string }}",
    "{{ x | upper }}",
    "{{ x | tojson }}",
    "{{ x | tojson(indent=2) }}",
    "{{ x | trim }}",
    "{{ x | join(',') }}",
    "{{ x | join(x) }}",
    "{{ ','.join(x) }}",
    "{{ x | indent(8) }}",
    "{{ x | replace('1', x) }}",
    "{{ x | sort }}",
    "{{ [x, x] | sort }}",
    "{{ x | unique }}",
    "{{ x | map('string') | list }}",
    "{{ x == y }}",
    "{{ x != y }}",
    "{{ x < y }}",
    "{{ 1 < x < y }}",
    "{{ x in [y] }}",
    "{{ [x, y] | select('eq', y) | list }}",
    "{{ x is eq y }}",
    "{{ x is lower }}",
    "{{ 'x' is startingwith x }}",
    "{{ {x: 1} }}",
    "{{ {'a': x}.items() | list }}",
    "{% for i in [1, 2] %}{{ loop.changed(x) }}{{ loop.changed(y) }}{% endfor %}",
    "{% filter replace('a', x) %}aaa{% endfilter %}",
    "{% set z %}{{ x }}{% endset %}{{ z }}",
    "{{ raise_exception(x) }}",
    "{{ strftime_now(x) }}",
];

/// Ways to make `x`, and often an equal `y`, of which a few steps make a billion items.
const MAKERS: [&str; 12] = [
    "{% set x = [1] %}{% set y = [1] %}REPEAT{% set x = [x, x] %}{% set y = [y, y] %}AGAIN",
    "{% set x = (1, 1) %}{% set y = (1, 1) %}REPEAT{% set x = (x, x) %}{% set y = (y, y) %}AGAIN",
    "{% set x = {'a': 1} %}{% set y = {'a': 1} %}REPEAT{% set x = {'a': x, 'b': x} %}{% set y = {'a': y, 'b': y} %}AGAIN",
    "{% set x = [1] %}{% set y = [1] %}REPEAT{% set x = x + x %}{% set y = y + y %}AGAIN",
    "{% set x = [1] %}{% set y = [1] %}REPEAT{% set x = x * 2 %}{% set y = y * 2 %}AGAIN",
    "{% set x = [1] %}{% set y = [1] %}REPEAT{% set x = dict(a=x, b=x) %}{% set y = dict(a=y, b=y) %}AGAIN",
    "{% set x = [1] %}{% set y = [1] %}REPEAT{% set x = [x, x] | map('list') | list %}{% set y = [y, y] | list %}AGAIN",
    "{% set ns = namespace(v=[1], w=[1]) %}{% for i in range(30) %}{% set ns.v = [ns.v, ns.v] %}\
     {% set ns.w = [ns.w, ns.w] %}{% endfor %}{% set x = ns.v %}{% set y = ns.w %}",
    "{% set x = [1] * 100000000 %}{% set y = [1] * 100000000 %}",
    "{% set x = [[1, 2]] * 100000000 %}{% set y = [1] * 100000000 %}",
    "{% set x = range(100000) %}{% set y = range(100000) %}{% set x = [x, x, x, x, x, x, x, x, x, x] %}{% set y = [x] %}",
    "{% set x = 'x' * 900000 %}{% set y = x %}REPEAT{% set x = [x, x] %}{% set y = [y, y] %}AGAIN",
];

fn made(maker: &str, times: usize) -> String {
    match maker.split_once("REPEAT").zip(maker.split_once("AGAIN")) {
        Some(((before, rest), (_, after))) => {
            let body = rest.split_once("AGAIN").map_or(rest, |(body, _)| body);
            format!("{before}{}{after}", body.repeat(times))
        }
        None => maker.to_owned(),
    }
}

fn large_values() {
    for maker in MAKERS {
        for used in USES {
            let error = attack(&format!("{}{used}", made(maker, 30))).expect_err(used);
            assert!(error.contains("chat template: "), "{error}");
        }
    }
    // Values that are just small enough; what they cost is what counts.
    for maker in &MAKERS[..5] {
        for used in USES {
            let _ = attack(&format!("{}{}", made(maker, 11), used.repeat(100)));
        }
    }
}

fn large_strings() {
    for source in [
        "{% set s = 'x' * 900000 %}{{ [s] * 1000 }}",
        "{% set s = 'x' * 500000 %}{{ ([s] + ['a'] * 20000) | sort }}",
        "{% set s = 'x' * 500000 %}{{ ([s] + ['a'] * 20000) | sort | unique }}",
        "{% set s = 'x' * 200000 %}{{ s.strip('a' * 200000 ~ 'x') }}",
        "{% set s = 'x' * 200000 %}{{ s | trim('a' * 200000 ~ 'x') }}",
        "{% set s = 'xä' * 200000 %}{% for i in range(9000) %}{{ s[-1] }}{% endfor %}",
        "{% set s = 'xä' * 200000 %}{% for i in range(9000) %}{{ s[-1:] }}{{ s[::-300000] }}{% endfor %}",
        "{% set s = 'xä' * 200000 %}{% for i in range(9000) %}{% for c in s %}{% break %}{% endfor %}{% endfor %}",
        "{% set x = [1] * 9000 %}{% for i in range(9000) %}{{ x[8999:] }}{{ x[::8999] }}{{ x[-1] }}{% endfor %}",
        "{{ '%s' * 100000 | format(1) }}",
        "{% set s = ', ' * 900000 %}{{ s.split(',') | length }}{{ s.split() | length }}{{ s.split('') | length }}",
        "{% set s = '\\n' * 900000 %}{{ s.splitlines() | length }}{{ s.split('\\n') | length }}",
        "{{ ('%s' * 100000) | format(1) }}",
        "{{ ['x'] | join('y' * 900000, attribute='z' * 900000) }}",
        "{{ messages | map(attribute='a.' * 400000, default=1) | list }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ 'x' | wordwrap(1) }}",
        "{{ ['a', 'b'] | sum(start='') }}",
        "{{ 1e308 ~ 5e-324 }}{{ [1e308] * 3000 }}",
        "{{ messages | map('map', 'map') }}",
        "{{ [[[1] * 1000]] | map('tojson', indent=1000000) | list }}",
        "{{ messages | map(messages[0].role) }}",
        "{{ messages | select('startingwith', 'x') }}",
        "{% for i in range(1000) %}{{ ('x' * 900)[::-1] | upper }}{% endfor %}",
        "{% set s = 'x' * 900000 %}{% for i in range(10000) %}{{ s == s ~ '' }}{% endfor %}",
        "{% set s = 'x' * 300000 %}{% set t = s ~ 'y' %}{% for i in range(10000) %}{{ t in s }}{% endfor %}",
    ] {
        let _ = attack(source);
    }
}

fn cycles() {
    for source in [
        "{% set ns = namespace() %}{% set ns.v = ns %}{{ ns ~ '' }}",
        "{% set ns = namespace() %}{% set ns.v = [ns] %}{{ ns ~ '' }}",
        "{% set ns = namespace() %}{% set ns.v = {'a': ns} %}{{ ns }}",
        "{% set ns = namespace() %}{% set o = namespace(a=ns) %}{% set ns.v = o %}{{ ns }}",
        "{% set ns = namespace() %}{% set make = namespace %}{% set o = make(a=ns) %}{{ o }}",
        "{% set ns = namespace() %}{% set ns.v = ns or 1 %}{{ ns | tojson }}",
        "{% set ns = namespace() %}{% set ns.v = ns if true %}{{ ns | string }}",
        "{% set ns = namespace() %}{% set ns.v = [1, ns][1] %}{{ ns | string }}",
        "{% set ns = namespace() %}{% set ns.v = (ns | default(1)) %}{{ ns | string }}",
        "{% set ns = namespace() %}{% for x in [1] %}{% set ns.v = loop.cycle(ns) %}{{ ns | string }}{% endfor %}",
        "{% set ns = namespace() %}{% for x in [1] %}{% set ns.v = loop.cycle(a=ns) %}{{ ns }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.v, x = ns, 1 %}{{ ns }}",
        "{% set ns = namespace() %}{% macro f(a) %}{% set ns.v = caller %}{% endmacro %}{% call f(1) %}x{% endcall %}{{ ns }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ [f] }}",
        "{% macro f(a) %}{{ a }}{% endmacro %}{{ f }}",
        "{% for x in [1] %}{{ [loop] }}{% endfor %}",
        "{% for x in [1] %}{{ loop }}{% endfor %}",
        "{% for x in [1] %}{{ loop.cycle() }}{% endfor %}",
        "{% for x in [1] %}{{ loop.cycle(*[]) }}{% endfor %}",
        "{% set ns = namespace(a=1) %}{{ ns.items() | list }}",
        "{% set ns = namespace(a=1) %}{{ ns | items | list }}",
        "{{ debug() }}",
        "{% autoescape true %}{{ 1 }}{% endautoescape %}",
    ] {
        let source = source.to_owned();
        attack(&source).expect_err(&source);
    }
    // Many fields of one large value.
    let mut fields = String::from("{% set ns = namespace() %}{% set x = ['x' * 200000] %}");
    for field in 0..1000 {
        write!(fields, "{{% set ns.a{field} = x %}}").unwrap();
    }
    for used in ["{{ ns }}", "{{ ns ~ '' }}", "{{ dict(ns) }}", "{{ ns.values() | list }}", "{{ ns == namespace(ns) }}"]
    {
        attack(&format!("{fields}{used}")).expect_err(used);
    }
}

fn recursion() {
    for source in [
        "{% macro f(a) %}{{ f(a ~ a) }}{% endmacro %}{{ f('x') }}",
        "{% macro f(a) %}{{ f([a, a]) }}{% endmacro %}{{ f([1]) }}",
        "{% macro f(a) %}{{ f(a) }}{{ f(a) }}{% endmacro %}{{ f([1]) }}",
        "{% macro f() %}{{ caller() }}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{% call f() %}x{% endcall %}",
        "{% for a in [1] recursive %}{{ loop([a, a]) }}{% endfor %}",
        "{% for a in [[1]] recursive %}{{ a }}{{ loop([a, a]) }}{% endfor %}",
        "{% for a in [[1]] recursive %}{% set x = loop([[a, a]]) %}{{ x ~ x }}{% endfor %}",
        "{% set ns = namespace(v=1) %}{% for i in range(5000) %}{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v }}",
        "{% set ns = namespace(v=[1]) %}{% for i in range(50000) %}{% set ns.v = ns.v[::1] %}{% endfor %}{{ ns.v }}",
        "{% set ns = namespace(v=[1]) %}{% for i in range(50000) %}{% set ns.v = ns.v + [1] %}{% endfor %}{{ ns.v }}",
        "{% for i in range(100000) %}{% set x %}{% continue %}{% endset %}{% endfor %}{% for i in range(100000) %}{% endfor %}",
        "{% for i in range(100000) %}{% with a = [1] * 10000 %}{{ a | length }}{% endwith %}{% endfor %}",
        "{{ self.x() }}{{ super() }}",
        "{% block x %}{{ self.x() }}{% endblock %}",
    ] {
        attack(source).expect_err(source);
    }
}

fn sources() {
    const MAX: usize = 32 << 10;
    let fill = |open: &str, part: &str, close: &str| {
        let times = (MAX - open.len() - close.len()) / part.len();
        format!("{open}{}{close}", part.repeat(times))
    };
    for source in [
        fill("{{ x", "~x", " }}"),
        fill("{{ 1", "+1", " }}"),
        fill("{{ x", " or x", " }}"),
        fill("{{ x", "|e", " }}"),
        fill("{{ x", ".a", " }}"),
        fill("{{ x", "[1]", " }}"),
        fill("{{ x", "()", " }}"),
        fill("{{ x", "<1", " }}"),
        fill("{{ x", " if x", " }}"),
        fill("{{ x", " is x", " }}"),
        fill("{{ ", "-", "1 }}"),
        fill("{{ ", "not ", "1 }}"),
        fill("{{ ", "(", ""),
        fill("{{ ", "[", ""),
        fill("{{ [", "1,", "] }}"),
        fill("{{ {", "1:x,", "} }}"),
        fill("{{ f(", "x,", ") }}"),
        fill("{{ ", "'a'", " }}"),
        fill("{{ '", "\\n", "' }}"),
        fill("{% if x %}", "{% elif x %}", "{% endif %}"),
        fill("", "{% if x %}", ""),
        fill("", "{% for x in y %}", ""),
        fill("{% set ", "(", ""),
        fill("{% set ", "a,", "= x %}"),
        fill("{% set a", ".a", " = x %}"),
        fill("{% macro f(", "a,", ") %}{% endmacro %}"),
        fill("{% macro f(", "a=1,", ") %}{% endmacro %}"),
        fill("", "{% macro a() %}{{ x }}{% endmacro %}", ""),
        fill("", "{% macro a() %}", ""),
        fill("", "{#", ""),
        fill("", "{##}", ""),
        fill("", "{% raw %}", ""),
        fill("", "{% raw %}{% endraw %}", ""),
        fill("", " \n", ""),
        fill("", "{", ""),
        fill("", "{%- x -%}", ""),
        fill("{% filter a", "|a", " %}{% endfilter %}"),
        fill("{% with a=1", ",a=1", " %}{% endwith %}"),
        fill("{{ 9", "9", " }}"),
        fill("{{ 9", "_9", " }}"),
        fill("{{ 1.", "9", " }}"),
        fill("{{ a", "ä", " }}"),
        "{{ ([1] * 100000000) ~ '' }}".into(),
        "{{ ([1] * 100000000) == ([1] * 100000000) }}".into(),
        "{{ [1] * 100000000 < [1] * 100000000 < [1] }}".into(),
        "{{ 1 in [1] * 100000000 }}{{ 2 in [1] * 100000000 }}".into(),
    ] {
        let _ = attack(&source);
    }
}

/// The largest part of this process that was in memory at once, in KiB, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

#[test]
fn attacks_end_soon_and_small() {
    // The allocator and the first thread are paid for.
    attack("{{ bos_token }}").unwrap();
    let before = peak();
    large_values();
    large_strings();
    cycles();
    recursion();
    sources();
    match before.zip(peak()) {
        Some((before, after)) => {
            println!("peak memory before {before} KiB, after {after} KiB");
            assert!(after - before < 64 << 10, "memory grew by {} KiB", after - before);
        }
        None => println!("memory is not measured here: the system has no /proc/self/status"),
    }
}
