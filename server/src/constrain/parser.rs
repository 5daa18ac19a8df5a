//! Rules in the form that `llguidance` reads.

use llguidance::api::{GrammarInit, SkipSpec};
use llguidance::derivre::RegexAst;
use llguidance::earley::lexerspec::{LexemeClass, LexerSpec};
use llguidance::earley::{Grammar, SymIdx, SymbolProps};
use std::collections::HashMap;

use super::Refused;
use super::rules::{FEW_CHARACTERS, Lexeme, Rules, Symbol};
use super::schema::{of_length, quoted};
use super::ways::Ways;

/// Repetitions up to this many are written out.
const FEW: u32 = 6;

/// The grammar of those rules that can be completed.
///
/// # Errors
/// What the lexer cannot read.
pub(super) fn grammar(rules: &Rules, ways: &Ways) -> Result<GrammarInit, Refused> {
    let mut lexer = LexerSpec::new().map_err(Refused::internal)?;
    // There is nothing between lexemes.
    let class = lexer.setup_lexeme_class_with_skip(SkipSpec::once(RegexAst::NoMatch)).map_err(Refused::internal)?;
    let mut grammar = Grammar::new(None);
    let start =
        grammar.fresh_symbol_ext("start", SymbolProps { grammar_id: class, is_start: true, ..SymbolProps::default() });
    let mut maker = Maker { rules, ways, lexer, grammar, class, symbols: HashMap::new(), open: Vec::new() };
    let form = maker.symbol(Symbol::Rule(0))?;
    maker.add(start, vec![form])?;
    while let Some(rule) = maker.open.pop() {
        for alternative in ways.alternatives(rule) {
            let symbols = alternative.iter().map(|&symbol| maker.symbol(symbol)).collect::<Result<_, _>>()?;
            let rule = maker.symbol(Symbol::Rule(rule))?;
            maker.add(rule, symbols)?;
        }
    }
    Ok(GrammarInit::Internal(maker.grammar, maker.lexer))
}

struct Maker<'a> {
    rules: &'a Rules,
    ways: &'a Ways,
    lexer: LexerSpec,
    grammar: Grammar,
    class: LexemeClass,
    symbols: HashMap<Symbol, SymIdx>,
    /// Rules whose alternatives are not written yet.
    open: Vec<usize>,
}

impl Maker<'_> {
    fn fresh(&mut self) -> SymIdx {
        self.grammar.fresh_symbol_ext("", SymbolProps { grammar_id: self.class, ..SymbolProps::default() })
    }

    fn add(&mut self, rule: SymIdx, symbols: Vec<SymIdx>) -> Result<(), Refused> {
        self.grammar.add_rule(rule, symbols).map_err(Refused::internal)
    }

    fn symbol(&mut self, symbol: Symbol) -> Result<SymIdx, Refused> {
        if let Some(&known) = self.symbols.get(&symbol) {
            return Ok(known);
        }
        let made = match symbol {
            Symbol::Lexeme(lexeme) => {
                let made = self.fresh();
                let regex = match &self.rules.lexemes[lexeme] {
                    Lexeme::Literals { texts, space } => {
                        let texts = RegexAst::Or(texts.iter().map(|text| RegexAst::Literal(text.clone())).collect());
                        let space = if *space { RegexAst::Regex(" ?".into()) } else { RegexAst::EmptyString };
                        RegexAst::Concat(vec![texts, space])
                    }
                    Lexeme::Regex { regex, .. } => regex.clone(),
                    Lexeme::Counted { min, max } => quoted(of_length(*min, max.filter(|&max| max <= FEW_CHARACTERS))),
                };
                let lexeme = self
                    .lexer
                    .add_greedy_lexeme(String::new(), regex, false, None, usize::MAX)
                    .map_err(Refused::internal)?;
                self.grammar.make_terminal(made, lexeme, &self.lexer).map_err(Refused::internal)?;
                made
            }
            Symbol::Rule(rule) => {
                self.open.push(rule);
                self.fresh()
            }
            Symbol::Repeat { rule, min, max } => {
                if self.ways.alternatives(rule).is_empty() {
                    // Only the empty repetition is left.
                    let made = self.fresh();
                    self.add(made, vec![])?;
                    made
                } else {
                    let once = self.symbol(Symbol::Rule(rule))?;
                    self.repeat(once, min, max)?
                }
            }
        };
        self.symbols.insert(symbol, made);
        Ok(made)
    }

    fn repeat(&mut self, once: SymIdx, min: u32, max: u32) -> Result<SymIdx, Refused> {
        let made = self.fresh();
        let exactly = self.exactly(once, min)?;
        let more = if max == u32::MAX {
            let more = self.fresh();
            self.add(more, vec![])?;
            self.add(more, vec![more, once])?;
            more
        } else {
            self.up_to(once, max - min)?
        };
        self.add(made, vec![exactly, more])?;
        Ok(made)
    }

    /// `count` times: as many dozens as fit, and the rest.
    fn exactly(&mut self, once: SymIdx, count: u32) -> Result<SymIdx, Refused> {
        let made = self.fresh();
        if count <= FEW {
            self.add(made, vec![once; count as usize])?;
            return Ok(made);
        }
        let group = self.exactly(once, FEW)?;
        let groups = self.exactly(group, count / FEW)?;
        let rest = self.exactly(once, count % FEW)?;
        self.add(made, vec![groups, rest])?;
        Ok(made)
    }

    /// 0 to `count` times, in one way for each number: whole groups and less than a group, or all groups and the rest.
    fn up_to(&mut self, once: SymIdx, count: u32) -> Result<SymIdx, Refused> {
        let made = self.fresh();
        if count < 2 * FEW {
            for times in 0..=count {
                self.add(made, vec![once; times as usize])?;
            }
            return Ok(made);
        }
        let group = self.exactly(once, FEW)?;
        let fewer_groups = self.up_to(group, count / FEW - 1)?;
        let part = self.up_to(once, FEW - 1)?;
        self.add(made, vec![fewer_groups, part])?;
        let all_groups = self.exactly(group, count / FEW)?;
        let rest = self.up_to(once, count % FEW)?;
        self.add(made, vec![all_groups, rest])?;
        Ok(made)
    }
}
