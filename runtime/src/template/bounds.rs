//! Puts bounds into a template before it is compiled.
//!
//! The engine charges fuel for steps and for what they make, but not for what is inside a list: `[x, x]`, thirty times over,
//! makes a value of a few hundred bytes that prints as a billion items, and `[1] * 1000000000` computes its items when it
//! is printed. So the template's tree is built anew, with a filter of [`size`](super::size) around every expression that
//! makes a container or looks into one:
//!
//! - what makes a list, a tuple or a map (literals, `+`, `*`, slices, filters, calls) goes through [`SETTLE`] or, where the
//!   result cannot be larger than what it is made of, [`COLLECT`]. So every container has its items at hand, is of limited
//!   depth and size, and holds data only; nothing can come to hold itself.
//! - what takes time with the size of a container (comparisons, `in`, filters, tests, arguments of methods) pays for that
//!   size with [`WEIGH`], slices for the length with [`LENGTH`]; printing pays to the engine, after the fact, but for a
//!   value of limited size. The engine charges every filter, ours too, for the length of a string that passes through it,
//!   so strings pay for loops and indices.
//! - filters and tests are those that chat templates use, by name; the engine's others are refused.
//!
//! Constants fold when the tree is compiled. A constant operand of `+`, `*` or `~` can be a literal of the source only, for
//! every expression around it is no constant.

use minijinja::ErrorKind;
use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, Expr, Spanned, Stmt};

use super::size::{COLLECT, DATA, KEY, LENGTH, SETTLE, SMALL_ONLY, WEIGH, WEIGH_TO_SORT};
use super::{Engine, fail};

/// Expressions in expressions, blocks in blocks, and links of chains such as `a + b + c` and `elif`.
const MAX_DEPTH: usize = 400;

/// Tests that look at the kind of a value, or at a number.
const QUICK_TESTS: [&str; 18] = [
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "integer",
    "int",
    "float",
    "boolean",
    "mapping",
    "sequence",
    "iterable",
    "true",
    "false",
    "odd",
    "even",
    "divisibleby",
    "sameas",
];
/// Tests that compare.
const COMPARISONS: [&str; 12] =
    ["eq", "equalto", "ne", "lt", "lessthan", "le", "gt", "greaterthan", "ge", "in", "==", "!="];
/// Tests that read text.
const TEXT_TESTS: [&str; 4] = ["startingwith", "endingwith", "lower", "upper"];
/// Filters that `map` may apply: the result is as large as the item.
const MAPPED: [&str; 15] = [
    "trim",
    "upper",
    "lower",
    "title",
    "capitalize",
    "string",
    "tojson",
    "length",
    "count",
    "first",
    "last",
    "int",
    "float",
    "list",
    "abs",
];

/// The template with bounds.
///
/// # Errors
/// Something that is not for chat templates, or is nested too deep.
pub(super) fn bounded<'a>(template: &Stmt<'a>) -> Engine<Stmt<'a>> {
    Bounds { depth: 0 }.statement(template)
}

fn refuse<T>(what: String) -> Engine<T> {
    Err(fail(ErrorKind::SyntaxError, what))
}

fn through<'a>(filter: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    Expr::Filter(Spanned::new(ast::Filter { name: filter, expr: Some(expr), args: Vec::new() }, span))
}

fn is_constant(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(_))
}

fn is_text(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(constant) if constant.value.as_str().is_some())
}

/// Whether the value cannot be a namespace, a loop or a macro, whatever the parts are.
fn is_data(expr: &Expr<'_>) -> bool {
    match expr {
        Expr::Const(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) | Expr::Test(_) | Expr::Compare(_) => true,
        Expr::UnaryOp(_) => true,
        Expr::BinOp(op) => !matches!(op.op, BinOpKind::ScAnd | BinOpKind::ScOr),
        _ => false,
    }
}

/// Whether a sum has a string or a number among its terms: then it is one, or fails.
fn is_scalar_sum(sum: &ast::BinOp<'_>) -> bool {
    let scalar =
        |expr: &Expr<'_>| is_constant(expr) || matches!(expr, Expr::BinOp(op) if matches!(op.op, BinOpKind::Concat));
    scalar(&sum.right)
        || scalar(&sum.left)
        || matches!(&sum.left, Expr::BinOp(left) if matches!(left.op, BinOpKind::Add) && is_scalar_sum(left))
}

/// How the arguments of a filter are treated.
#[derive(Clone, Copy)]
enum Arguments {
    Free,
    Weighed,
    Small,
    /// The first so many are names, the others are weighed.
    NamesThenWeighed(usize),
    /// The first so many are weighed, the others are names.
    WeighedThenNames(usize),
}

struct Bounds {
    depth: usize,
}

impl Bounds {
    fn nested<T>(&mut self, build: impl FnOnce(&mut Self) -> Engine<T>) -> Engine<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return refuse(format!("its expressions or blocks are more than {MAX_DEPTH} deep"));
        }
        let built = build(self);
        self.depth -= 1;
        built
    }

    fn body<'a>(&mut self, body: &[Stmt<'a>]) -> Engine<Vec<Stmt<'a>>> {
        body.iter().map(|statement| self.statement(statement)).collect()
    }

    fn statement<'a>(&mut self, statement: &Stmt<'a>) -> Engine<Stmt<'a>> {
        self.nested(|bounds| bounds.statement_inside(statement))
    }

    fn statement_inside<'a>(&mut self, statement: &Stmt<'a>) -> Engine<Stmt<'a>> {
        Ok(match statement {
            Stmt::Template(old) => {
                let children = self.body(&old.children)?;
                Stmt::Template(Spanned::new(ast::Template { children }, old.span()))
            }
            Stmt::EmitExpr(old) => {
                // Of `loop(…)`, which returns text, the engine writes each part only once when it sees it here.
                let expr = match &old.expr {
                    Expr::Call(call) if matches!(&call.expr, Expr::Var(name) if name.id == "loop") => {
                        Expr::Call(self.call(call)?)
                    }
                    expr => self.expr(expr)?,
                };
                Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, old.span()))
            }
            Stmt::EmitRaw(old) => Stmt::EmitRaw(Spanned::new(ast::EmitRaw { raw: old.raw }, old.span())),
            Stmt::ForLoop(old) => {
                let new = ast::ForLoop {
                    target: self.expr_as_it_is(&old.target)?,
                    iter: self.expr_through(COLLECT, &old.iter)?,
                    filter_expr: self.optional(old.filter_expr.as_ref())?,
                    recursive: old.recursive,
                    body: self.body(&old.body)?,
                    else_body: self.body(&old.else_body)?,
                };
                Stmt::ForLoop(Spanned::new(new, old.span()))
            }
            Stmt::IfCond(old) => {
                let new = ast::IfCond {
                    expr: self.expr(&old.expr)?,
                    true_body: self.body(&old.true_body)?,
                    false_body: self.body(&old.false_body)?,
                };
                Stmt::IfCond(Spanned::new(new, old.span()))
            }
            Stmt::WithBlock(old) => {
                let assign =
                    |(target, value): &(Expr<'a>, Expr<'a>)| Ok((self.expr_as_it_is(target)?, self.expr(value)?));
                let assignments = old.assignments.iter().map(assign).collect::<Engine<_>>()?;
                let body = self.body(&old.body)?;
                Stmt::WithBlock(Spanned::new(ast::WithBlock { assignments, body }, old.span()))
            }
            Stmt::Set(old) => {
                let mut expr = self.expr(&old.expr)?;
                if matches!(old.target, Expr::GetAttr(_)) && !is_data(&old.expr) {
                    expr = through(DATA, expr);
                }
                Stmt::Set(Spanned::new(ast::Set { target: self.expr_as_it_is(&old.target)?, expr }, old.span()))
            }
            Stmt::SetBlock(old) => {
                let new = ast::SetBlock {
                    target: self.expr_as_it_is(&old.target)?,
                    filter: self.optional(old.filter.as_ref())?,
                    body: self.body(&old.body)?,
                };
                Stmt::SetBlock(Spanned::new(new, old.span()))
            }
            Stmt::FilterBlock(old) => {
                let new = ast::FilterBlock {
                    filter: self.expr(&old.filter)?,
                    filter_span: old.filter_span,
                    body: self.body(&old.body)?,
                };
                Stmt::FilterBlock(Spanned::new(new, old.span()))
            }
            Stmt::Macro(old) => Stmt::Macro(self.macro_declaration(old)?),
            Stmt::CallBlock(old) => {
                let new = ast::CallBlock {
                    call: self.call(&old.call)?,
                    call_expr_span: old.call_expr_span,
                    macro_decl: self.macro_declaration(&old.macro_decl)?,
                };
                Stmt::CallBlock(Spanned::new(new, old.span()))
            }
            Stmt::Continue(old) => Stmt::Continue(Spanned::new(ast::Continue, old.span())),
            Stmt::Break(old) => Stmt::Break(Spanned::new(ast::Break, old.span())),
            Stmt::Do(old) => Stmt::Do(Spanned::new(ast::Do { call: self.call(&old.call)? }, old.span())),
            Stmt::AutoEscape(_) => return refuse("autoescape is for web pages".into()),
        })
    }

    fn macro_declaration<'a>(&mut self, old: &Spanned<ast::Macro<'a>>) -> Engine<Spanned<ast::Macro<'a>>> {
        let new = ast::Macro {
            name: old.name,
            args: old.args.iter().map(|name| self.expr_as_it_is(name)).collect::<Engine<_>>()?,
            defaults: old.defaults.iter().map(|value| self.expr(value)).collect::<Engine<_>>()?,
            body: self.body(&old.body)?,
        };
        Ok(Spanned::new(new, old.span()))
    }

    fn optional<'a>(&mut self, expr: Option<&Expr<'a>>) -> Engine<Option<Expr<'a>>> {
        expr.map(|expr| self.expr(expr)).transpose()
    }

    fn all<'a>(&mut self, exprs: &[Expr<'a>]) -> Engine<Vec<Expr<'a>>> {
        exprs.iter().map(|expr| self.expr(expr)).collect()
    }

    fn expr_through<'a>(&mut self, filter: &'static str, expr: &Expr<'a>) -> Engine<Expr<'a>> {
        let new = self.expr(expr)?;
        Ok(if is_constant(expr) { new } else { through(filter, new) })
    }

    /// The names that something is assigned to: variables, fields, lists of them.
    fn expr_as_it_is<'a>(&mut self, target: &Expr<'a>) -> Engine<Expr<'a>> {
        self.nested(|bounds| {
            Ok(match target {
                Expr::Var(old) => Expr::Var(Spanned::new(ast::Var { id: old.id }, old.span())),
                Expr::GetAttr(old) => {
                    let expr = bounds.expr_as_it_is(&old.expr)?;
                    Expr::GetAttr(Spanned::new(ast::GetAttr { expr, name: old.name }, old.span()))
                }
                Expr::List(old) => {
                    let items = old.items.iter().map(|item| bounds.expr_as_it_is(item)).collect::<Engine<_>>()?;
                    Expr::List(Spanned::new(ast::List { items }, old.span()))
                }
                other => return refuse(format!("a {} cannot be assigned to", other.description())),
            })
        })
    }

    fn expr<'a>(&mut self, expr: &Expr<'a>) -> Engine<Expr<'a>> {
        self.nested(|bounds| bounds.expr_inside(expr))
    }

    fn expr_inside<'a>(&mut self, expr: &Expr<'a>) -> Engine<Expr<'a>> {
        Ok(match expr {
            Expr::Var(old) => Expr::Var(Spanned::new(ast::Var { id: old.id }, old.span())),
            Expr::Const(old) => Expr::Const(Spanned::new(ast::Const { value: old.value.clone() }, old.span())),
            Expr::Slice(old) => {
                let new = ast::Slice {
                    expr: self.expr_through(LENGTH, &old.expr)?,
                    start: self.optional(old.start.as_ref())?,
                    stop: self.optional(old.stop.as_ref())?,
                    step: self.optional(old.step.as_ref())?,
                };
                through(COLLECT, Expr::Slice(Spanned::new(new, old.span())))
            }
            Expr::UnaryOp(old) => {
                let op = match old.op {
                    ast::UnaryOpKind::Not => ast::UnaryOpKind::Not,
                    ast::UnaryOpKind::Neg => ast::UnaryOpKind::Neg,
                };
                Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: self.expr(&old.expr)? }, old.span()))
            }
            Expr::BinOp(old) => self.binary(old)?,
            Expr::Compare(old) => {
                let first = self.expr_through(WEIGH, &old.expr)?;
                let next = |link: &ast::CompareOp<'a>| {
                    Ok(ast::CompareOp { op: link.op, expr: self.expr_through(WEIGH, &link.expr)? })
                };
                let ops = old.ops.iter().map(next).collect::<Engine<_>>()?;
                Expr::Compare(Spanned::new(ast::Compare { expr: first, ops }, old.span()))
            }
            Expr::IfExpr(old) => {
                let new = ast::IfExpr {
                    test_expr: self.expr(&old.test_expr)?,
                    true_expr: self.expr(&old.true_expr)?,
                    false_expr: self.optional(old.false_expr.as_ref())?,
                };
                Expr::IfExpr(Spanned::new(new, old.span()))
            }
            Expr::Filter(old) => self.filter(old)?,
            Expr::Test(old) => self.test(old)?,
            Expr::GetAttr(old) => {
                Expr::GetAttr(Spanned::new(ast::GetAttr { expr: self.expr(&old.expr)?, name: old.name }, old.span()))
            }
            Expr::GetItem(old) => {
                let container = self.expr(&old.expr)?;
                let new = ast::GetItem {
                    // The characters of a string are counted for each index; a name is for maps.
                    expr: if is_text(&old.subscript_expr) { container } else { through(COLLECT, container) },
                    subscript_expr: self.expr(&old.subscript_expr)?,
                };
                Expr::GetItem(Spanned::new(new, old.span()))
            }
            Expr::Call(old) => {
                // What a method returns is part of what it is called on.
                let filter = if matches!(old.expr, Expr::GetAttr(_)) { COLLECT } else { SETTLE };
                through(filter, Expr::Call(self.call(old)?))
            }
            Expr::List(old) => {
                let new = Expr::List(Spanned::new(ast::List { items: self.all(&old.items)? }, old.span()));
                if old.items.iter().all(is_constant) { new } else { through(SETTLE, new) }
            }
            Expr::Tuple(old) => {
                let new = Expr::Tuple(Spanned::new(ast::Tuple { items: self.all(&old.items)? }, old.span()));
                if old.items.iter().all(is_constant) { new } else { through(SETTLE, new) }
            }
            Expr::Map(old) => {
                let keys = old.keys.iter().map(|name| self.expr_through(KEY, name)).collect::<Engine<_>>()?;
                let values = self.all(&old.values)?;
                let new = Expr::Map(Spanned::new(ast::Map { keys, values }, old.span()));
                if old.keys.iter().chain(&old.values).all(is_constant) { new } else { through(SETTLE, new) }
            }
        })
    }

    fn binary<'a>(&mut self, old: &Spanned<ast::BinOp<'a>>) -> Engine<Expr<'a>> {
        let (left, right) = match old.op {
            BinOpKind::Add => {
                let sum = self.sum(old)?;
                return Ok(if is_scalar_sum(old) { sum } else { through(SETTLE, sum) });
            }
            BinOpKind::Mul => {
                let product = join(old, self.expr(&old.left)?, self.expr(&old.right)?);
                let text = is_text(&old.left) || is_text(&old.right);
                return Ok(if text { product } else { through(SETTLE, product) });
            }
            BinOpKind::Concat => {
                let mut part = |expr: &Expr<'a>| -> Engine<Expr<'a>> {
                    let new = self.expr(expr)?;
                    Ok(if is_data(expr) { new } else { through(DATA, new) })
                };
                (part(&old.left)?, part(&old.right)?)
            }
            // A constant is not a container, and comparing with it ends at once.
            BinOpKind::Eq | BinOpKind::Ne | BinOpKind::Lt | BinOpKind::Lte | BinOpKind::Gt | BinOpKind::Gte
                if !is_constant(&old.right) =>
            {
                (self.expr_through(WEIGH, &old.left)?, self.expr(&old.right)?)
            }
            BinOpKind::In if !is_constant(&old.left) => {
                (self.expr_through(WEIGH, &old.left)?, self.expr_through(WEIGH, &old.right)?)
            }
            _ => (self.expr(&old.left)?, self.expr(&old.right)?),
        };
        Ok(join(old, left, right))
    }

    /// A chain of `+` is settled as a whole: it has few terms, and none is too large.
    fn sum<'a>(&mut self, old: &Spanned<ast::BinOp<'a>>) -> Engine<Expr<'a>> {
        let left = match &old.left {
            Expr::BinOp(inner) if matches!(inner.op, BinOpKind::Add) => self.nested(|bounds| bounds.sum(inner))?,
            left => self.expr(left)?,
        };
        let right = self.expr(&old.right)?;
        Ok(join(old, left, right))
    }

    fn call<'a>(&mut self, old: &Spanned<ast::Call<'a>>) -> Engine<Spanned<ast::Call<'a>>> {
        let method = matches!(old.expr, Expr::GetAttr(_));
        if matches!(&old.expr, Expr::GetAttr(attribute) if attribute.name == "cycle") && old.args.is_empty() {
            return refuse("cycle needs arguments".into());
        }
        let arguments = if method { Arguments::Weighed } else { Arguments::Free };
        let new = ast::Call { expr: self.expr(&old.expr)?, args: self.arguments(&old.args, arguments)? };
        Ok(Spanned::new(new, old.span()))
    }

    fn arguments<'a>(&mut self, args: &[CallArg<'a>], how: Arguments) -> Engine<Vec<CallArg<'a>>> {
        let one = |(index, arg): (usize, &CallArg<'a>)| {
            let filter = match (how, arg) {
                (Arguments::Free, _) => None,
                (_, CallArg::Kwarg("attribute", _)) | (Arguments::Small, _) => Some(SMALL_ONLY),
                (Arguments::NamesThenWeighed(names), _) if index < names => Some(SMALL_ONLY),
                (Arguments::WeighedThenNames(others), _) if index >= others => Some(SMALL_ONLY),
                _ => Some(WEIGH),
            };
            let mut treated = |expr: &Expr<'a>| match filter {
                None => self.expr(expr),
                // Constants are checked too: they may be long.
                Some(SMALL_ONLY) => Ok(through(SMALL_ONLY, self.expr(expr)?)),
                Some(filter) => self.expr_through(filter, expr),
            };
            Ok(match arg {
                CallArg::Pos(expr) => CallArg::Pos(treated(expr)?),
                CallArg::Kwarg(name, expr) => CallArg::Kwarg(name, treated(expr)?),
                CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
                    return refuse("arguments cannot be spread with *".into());
                }
            })
        };
        args.iter().enumerate().map(one).collect()
    }

    fn filter<'a>(&mut self, old: &Spanned<ast::Filter<'a>>) -> Engine<Expr<'a>> {
        let (before, how, after) =
            match old.name {
                "length" | "count" | "first" | "last" | "default" | "d" | "bool" | "int" | "float" | "abs"
                | "round" => (None, Arguments::Free, None),
                "list" | "reverse" => (None, Arguments::Free, Some(COLLECT)),
                "items" => (Some(DATA), Arguments::Free, Some(COLLECT)),
                "sort" | "dictsort" | "unique" => (Some(WEIGH_TO_SORT), Arguments::Small, Some(COLLECT)),
                "select" | "reject" => {
                    one_of(old, 0, &[&QUICK_TESTS, &COMPARISONS])?;
                    (Some(WEIGH), Arguments::Weighed, Some(COLLECT))
                }
                "selectattr" | "rejectattr" => {
                    one_of(old, 1, &[&QUICK_TESTS, &COMPARISONS])?;
                    (Some(WEIGH), Arguments::NamesThenWeighed(1), Some(COLLECT))
                }
                "map" => {
                    one_of(old, 0, &[&MAPPED])?;
                    if old.args.iter().filter(|arg| matches!(arg, CallArg::Pos(_))).count() > 1 {
                        return refuse("map takes the name of a filter, without arguments for it".into());
                    }
                    (Some(WEIGH), Arguments::Weighed, Some(SETTLE))
                }
                "trim" | "tojson" => (Some(WEIGH), Arguments::Small, None),
                "join" => (Some(WEIGH), Arguments::WeighedThenNames(1), None),
                "upper" | "lower" | "title" | "capitalize" | "replace" | "string" | "safe" | "escape" | "e"
                | "indent" => (Some(WEIGH), Arguments::Weighed, None),
                name => return refuse(format!("the filter {name} is not one of those for chat templates")),
            };
        let expr = match (&old.expr, before) {
            (Some(expr), Some(filter)) => Some(self.expr_through(filter, expr)?),
            (expr, _) => self.optional(expr.as_ref())?,
        };
        let new = ast::Filter { name: old.name, expr, args: self.arguments(&old.args, how)? };
        let new = Expr::Filter(Spanned::new(new, old.span()));
        Ok(after.into_iter().fold(new, |new, filter| through(filter, new)))
    }

    fn test<'a>(&mut self, old: &Spanned<ast::Test<'a>>) -> Engine<Expr<'a>> {
        let (expr, how) = if QUICK_TESTS.contains(&old.name) {
            (self.expr(&old.expr)?, Arguments::Free)
        } else if COMPARISONS.contains(&old.name) || TEXT_TESTS.contains(&old.name) {
            (self.expr_through(WEIGH, &old.expr)?, Arguments::Weighed)
        } else {
            return refuse(format!("the test {} is not one of those for chat templates", old.name));
        };
        let new = ast::Test { name: old.name, expr, args: self.arguments(&old.args, how)? };
        Ok(Expr::Test(Spanned::new(new, old.span())))
    }
}

fn join<'a>(old: &Spanned<ast::BinOp<'a>>, left: Expr<'a>, right: Expr<'a>) -> Expr<'a> {
    let span: Span = old.span();
    Expr::BinOp(Spanned::new(ast::BinOp { op: old.op, left, right }, span))
}

/// Refuses a filter whose argument at `index`, the name of what it applies, is computed or not in the lists.
fn one_of(filter: &ast::Filter<'_>, index: usize, names: &[&[&str]]) -> Engine<()> {
    match filter.args.get(index) {
        Some(CallArg::Pos(Expr::Const(constant)))
            if constant.value.as_str().is_some_and(|name| names.iter().any(|list| list.contains(&name))) =>
        {
            Ok(())
        }
        Some(CallArg::Pos(_)) => refuse(format!("what {} applies is not one of those for chat templates", filter.name)),
        _ => Ok(()),
    }
}
