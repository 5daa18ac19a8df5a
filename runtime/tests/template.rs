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

/// Constructs of the templates of Llama-3.1, Qwen3, Mistral, DeepSeek, Gemma and gpt-oss, in short ones of our own.
#[test]
fn forms_of_published_templates() {
    // A system message taken off the front, a date, a tool role that never comes.
    assert_eq!(
        render(
            "{{- bos_token }}\n{%- if not date_string is defined %}\n{%- set date_string = '26 Jul 2024' %}\n{%- endif %}\n\
             {%- if messages[0]['role'] == 'system' %}\n{%- set system = messages[0]['content'] | trim %}\n\
             {%- set messages = messages[1:] %}\n{%- else %}\n{%- set system = '' %}\n{%- endif %}\n\
             {{- '[' + system + '|' + date_string + ']\\n\\n' }}\n\
             {%- for message in messages %}\n\
             {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}\n\
             {{- '<' + message['role'] + '>' + message['content'] | trim + '<end>' }}\n\
             {%- elif message.role == 'tool' %}\n{{- raise_exception('no tools') }}\n{%- endif %}\n{%- endfor %}\n\
             {%- if tools is not none and tools %}\n{{- tools | tojson(indent=4) }}\n{%- endif %}\n\
             {%- if add_generation_prompt %}\n{{- '<assistant>' }}\n{%- endif %}"
        ),
        "<s>[Be brief.|26 Jul 2024]\n\n<user>Hi!<end><assistant>Hello.<end><user>Who?<end><assistant>"
    );
    // The last question of the user, found from behind; thoughts cut out; neighbours of a message.
    assert_eq!(
        render(
            "{%- set ns = namespace(multi_step_tool=true, last=messages | length - 1) %}\n\
             {%- for message in messages[::-1] %}\n{%- set index = (messages | length - 1) - loop.index0 %}\n\
             {%- if ns.multi_step_tool and message.role == 'user' and message.content is string and \
             not (message.content.startswith('<r>') and message.content.endswith('</r>')) %}\n\
             {%- set ns.multi_step_tool = false %}\n{%- set ns.last = index %}\n{%- endif %}\n{%- endfor %}\n{{- ns.last }}\n\
             {%- set content = '<think>\\na\\n</think>\\n\\nb' %}\n\
             {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n\
             {{- '|' + reasoning + '|' + content.split('</think>')[-1].lstrip('\\n').strip('\\n') + '|' }}\n\
             {%- for m in messages %}\n{%- if loop.previtem and loop.previtem.role != m.role %}{{ loop.index }}{% endif %}\n\
             {%- if not loop.last and loop.nextitem.role == 'user' %}{{ '>' }}{% endif %}\n\
             {%- if loop.index0 > 0 and messages[loop.index0 - 1].role == 'assistant' %}{{ '<' }}{% endif %}{%- endfor %}"
        ),
        "3|a|b|>23>4<"
    );
    // Roles that must alternate; the last of some messages.
    assert_eq!(
        render(
            "{%- if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% endif %}\n\
             {%- for message in loop_messages %}\n{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n\
             {{- raise_exception('roles must alternate') }}\n{%- endif %}\n{%- endfor %}\n\
             {%- set asked = loop_messages | selectattr('role', 'equalto', 'user') | list %}\n\
             {%- set others = loop_messages | rejectattr('role', 'in', ['user', 'tool']) | map(attribute='content') | join(', ') %}\n\
             {{- asked | length ~ asked[-1].content ~ (asked | last).role ~ others }}"
        ),
        "2Who?userHello."
    );
    // Text gathered in a namespace, and lists put together.
    assert_eq!(
        render(
            "{% set ns = namespace(is_first=true, system_prompt='', all=[]) %}\
             {% for message in [{'role': 'system', 'content': 'First.'}] + messages %}{% if message['role'] == 'system' %}\
             {% if ns.is_first %}{% set ns.system_prompt = ns.system_prompt + message['content'] %}{% set ns.is_first = false %}\
             {% else %}{% set ns.system_prompt = ns.system_prompt + '\\n\\n' + message['content'] %}{% endif %}\
             {% else %}{% set ns.all = ns.all + [message.role] %}{% endif %}{% endfor %}{{ ns.system_prompt }}|{{ ns.all }}"
        ),
        "First.\n\nBe brief.|['user', 'assistant', 'user']"
    );
    // Macros with defaults, dictionaries, blocks.
    assert_eq!(
        render(
            "{%- macro kind(spec, names, optional=false) -%}\n\
             {%- if spec.type == 'array' -%}{{ kind(spec['items'], names) }}[]\n\
             {%- elif spec.type is defined and spec.type is iterable and spec.type is not string -%}\n\
             {%- for t in spec.type -%}{{ t }}{% if not loop.last %} | {% endif %}{%- endfor -%}\n\
             {%- else -%}{{ spec.type | default('any', true) }}{% if optional %}?{% endif %}{%- endif -%}\n{%- endmacro -%}\n\
             {%- set spec = {'a': {'type': 'array', 'items': {'type': 'text'}}, 'b': {'type': ['x', 'y']}, 'c': {}} -%}\n\
             {%- for name, value in spec.items() -%}{{ name }}: {{ kind(value, ['a'], optional=name == 'c') }};{% endfor -%}\n\
             {%- for name, value in spec | dictsort -%}{{ name }}{% endfor -%}\n\
             {%- for name in spec -%}{{ name ~ ',' }}{% endfor -%}\n\
             {%- set block -%} {{ 'x' * 3 }} {%- endset -%}{{ block }}{% filter upper %}y{% endfilter -%}\n\
             {%- if spec is mapping and spec['a'] is mapping and 'c' in spec and spec.c | length == 0 %}!{% endif -%}\n\
             {{- {'a': 1, 'b': [1, 2.5, none, true]} | tojson }}"
        ),
        "a: text[];b: x | y;c: any?;abca,b,c,xxxY!{\"a\": 1, \"b\": [1, 2.5, null, true]}"
    );
    assert_eq!(
        render(
            "{% for role in messages | map(attribute='role') | unique %}{{ role[0] | upper }}{% endfor %}\
             {{ [3, 1, 2] | sort | reverse | list }}{{ 'a b  c'.split() | join('-') }}{{ (1, 2) + (3,) }}{{ [1, 2] * 2 }}\
             {{ range(2, 5) | list }}{{ 'abc'[1:] }}{{ 'abc'[::-1] }}{% with a = 1 %}{{ a + 1 }}{% endwith %}{{ 7 // 2 }}\
             {% macro box(x) %}[{{ caller() }}{{ x }}]{% endmacro %}{% call box(1) %}in{% endcall %}\
             {% for a in [1, [2, 3]] recursive %}{% if a is sequence %}({{ loop(a) }}){% else %}{{ a }}{% endif %}{% endfor %}\
             {% for x in messages if x.role == 'user' %}{{ loop.index }}/{{ loop.length }}{% else %}none{% endfor %}"
        ),
        "SUA[3, 2, 1]a-b-c(1, 2, 3)[1, 2, 1, 2][2, 3, 4]bccba23[in1]1(23)1/22/2"
    );
}

/// What is not supported may stand in a branch that is never taken.
#[test]
fn unused_branches() {
    let unused = "{% if tools %}{{ tools | pprint }}{% if f is callable %}{{ f(*tools) }}{% endif %}\
                  {% autoescape true %}{% endautoescape %}{{ messages | map(tools) | list }}{% filter zap %}{% endfilter %}{% endif %}a";
    assert_eq!(render(unused), "a");
    let used = unused.replace("if tools", "if messages");
    assert!(refusal(&used).contains("the filter pprint"));
}

/// The budget grows with the conversation: what is fine for a short one is fine for a long one.
#[test]
fn long_conversations() {
    let source = "{% set ns = namespace(all=[]) %}{% for m in messages %}{% set ns.all = ns.all + [m] %}{% endfor %}\
                  {% for m in ns.all %}{% if m.content == messages[loop.index0].content and m.role is string %}\
                  {{ m.role + ': ' + (m.content | trim).strip('\\n').split('</think>')[-1] ~ '\\n' }}{% endif %}{% endfor %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    for (n_messages, length) in [(500, 200), (20, 50_000), (1, 2_000_000)] {
        let text = "a word ".repeat(length / 7);
        let messages = vec![Message::new("user", text.as_str()); n_messages];
        let expected = format!("user: {}\n", text.trim()).repeat(n_messages);
        assert_eq!(template.render(&messages, true).unwrap(), expected);
    }
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
