//! Chat templates: the known forms, what published templates use, and hostile ones.

use std::path::Path;

use tritone_runtime::gguf::Gguf;
use tritone_runtime::template::{ChatForm, ChatTemplate, Message};
use tritone_runtime::tokenizer::Tokenizer;

fn talk() -> Vec<Message> {
    vec![
        Message::new("system", "Be brief."),
        Message::new("user", "  Hi! "),
        Message::new("assistant", "Hello."),
        Message::new("user", "Who?"),
    ]
}

fn render(source: &str) -> String {
    ChatTemplate::new(source, "<s>", "</s>").unwrap().render(&talk(), true).unwrap()
}

fn refusal(source: &str) -> String {
    let rendered = ChatTemplate::new(source, "<s>", "</s>").and_then(|template| template.render(&talk(), true));
    let message = rendered.expect_err("this template must be refused").to_string();
    assert!(!message.contains('\n') && message.len() < 700, "{message}");
    message
}

#[test]
fn the_template_of_a_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/models/bitnet-relu2/model-i2_s.gguf");
    let file = Gguf::open(path).unwrap();
    let tokenizer = Tokenizer::from_checkpoint(&file).unwrap();
    let template = ChatTemplate::from_checkpoint(&file, &tokenizer).unwrap();
    let expected = "System: Be brief.<|eot_id|>User:   Hi! <|eot_id|>Assistant: Hello.<|eot_id|>User: Who?<|eot_id|>";
    assert_eq!(template.render(&talk(), false).unwrap(), expected);
    assert_eq!(template.render(&talk(), true).unwrap(), format!("{expected}Assistant: "));
    assert_eq!((template.form(), template.note()), (None, None));
}

#[test]
fn known_forms() {
    let known = |form| {
        let template = ChatTemplate::known(form, "<|begin_of_text|>", "").unwrap();
        assert_eq!(template.form(), Some(form));
        template.render(&talk()[1..3], true).unwrap()
    };
    assert_eq!(known(ChatForm::BitNet), "User: Hi!<|eot_id|>Assistant: Hello.<|eot_id|>Assistant: ");
    assert_eq!(
        known(ChatForm::Llama3),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant\
         <|end_header_id|>\n\nHello.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(
        known(ChatForm::ChatMl),
        "<|im_start|>user\n  Hi! <|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(known(ChatForm::Plain), "User: Hi!\nAssistant: Hello.\nAssistant:");
    let plain = ChatTemplate::known(ChatForm::Plain, "", "").unwrap();
    assert!(plain.note().is_some() && plain.stop_strings().contains(&"\nUser:"));
}

#[test]
fn what_published_templates_use() {
    // Lines that hold only a block vanish, as under trim_blocks and lstrip_blocks.
    assert_eq!(render("a\n  {% if true %}\nb\n  {% endif %}\nc\n"), "a\nb\nc");
    assert_eq!(
        render(
            "{%- set ns = namespace(last=-1, system='') -%}\
             {%- for m in messages -%}{%- if m['role'] == 'system' -%}{%- set ns.system = m.content -%}{%- endif -%}\
             {%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}\
             {{ ns.system }}|{{ ns.last }}|{{ messages[::-1][0].content }}|{{ messages[-1]['content'] }}|{{ messages|length }}"
        ),
        "Be brief.|3|Who?|Who?|4"
    );
    assert_eq!(
        render(
            "{{ ' a '.strip() }}{{ 'xxaxx'.lstrip('x') }}{{ 'axx'.rstrip('x') }}|{{ 'a</think>b'.split('</think>')[-1] }}|\
             {{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith(('x', 'c')) }}|{{ 'a-b'.replace('-', '+') }}|\
             {{ ', '.join(['a', 'b']) }}|{{ 'ab'.upper() }}|{{ 'user'.capitalize() }}|{{ 'ab'.title() }}"
        ),
        "aaxxa|b|True|True|a+b|a, b|AB|User|Ab"
    );
    assert_eq!(
        render(
            "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{% if loop.last %}{% break %}{% endif %}{{ loop.index }}{% endfor %}"
        ),
        "13"
    );
    assert_eq!(
        render("{{ bos_token }}{{ messages[0] | tojson }}{{ eos_token }}"),
        "<s>{\"role\": \"system\", \"content\": \"Be brief.\"}</s>"
    );
    assert_eq!(render("{{ messages[0].items() | list | length }}{{ messages[0].get('x', 'y') }}"), "2y");
    assert_eq!(
        render(
            "{% macro tag(name) %}<{{ name }}>{% endmacro %}{{ tag('a') }}{{ tools is none }}{{ nothing is defined }}{{ messages[0].content is string }}"
        ),
        "<a>TrueFalseTrue"
    );
    assert_eq!(
        render("{{ 'x' if add_generation_prompt else 'y' }}{{ (1, 2)[0] }}{{ 7 % 2 == 1 }}{{ nothing }}"),
        "x1True"
    );
    let year: u32 = render("{{ strftime_now('%Y') }}").parse().unwrap();
    assert!((2024..3000).contains(&year));
    assert!(refusal("{{ raise_exception('roles must alternate') }}").contains("roles must alternate"));
}

#[test]
fn templates_that_are_wrong() {
    for source in
        ["{{", "{% if %}", "{% for %}", "{{ nothing.x }}", "{{ f() }}", "{% include 'other' %}", "{{ 'a'.zap() }}"]
    {
        refusal(source);
    }
    assert!(refusal(&" ".repeat(300 << 10)).contains("32768"));
}

#[test]
fn hostile_templates_end_soon() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    let long_chain = format!("{{{{ 1{} }}}}", " + 1".repeat(7_000));
    // Long, not deep: allowed to work, but it must not overflow the stack.
    // Nor an expression for which the compiler takes quadratic time; the deadline may end it.
    for source in [long_chain, format!("{{{{ x{} }}}}", "~x".repeat(16_000))] {
        let _ = ChatTemplate::new(&source, "", "").and_then(|template| template.render(&talk(), true));
    }
    for source in [
        deep.as_str(),
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000000000) %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}",
        "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ','.join(ns.s) }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = ns.s[::1] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(90000) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 1000000000 }}",
        "{{ ('x' * 30000) * 30000 }}",
        "{{ [1] * 1000000000 }}",
        "{% set s = 'x' * 1000000 %}{{ s.replace('x', s) }}",
        "{% set s = 'x' * 1000000 %}{{ s | replace('x', s) }}",
        "{% set s = 'x' * 1000000 %}{{ s.join([s] * 100000) }}",
        "{% set s = 'x' * 1000000 %}{{ '{0:>99999999}'.format(s) }}",
        "{% set s = ', ' * 10000000 %}{{ s.split(',') | length }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% include 'chat_template' %}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'x' | indent(1000000000) }}",
        "{{ 'x' | center(1000000000) }}",
        "{{ [[1]] | tojson(indent=1000000000) }}",
        "{{ range(1000000000) | list | sort }}",
        "{{ [1, 2] | batch(1000000000, 0) | list }}",
    ] {
        refusal(source);
    }
}
