//! Puts bounds into a template before it is compiled.
//!
//! The engine charges fuel for steps and for what they make, but not for what is inside a list: `[x, x]`, thirty times over,
//! makes a value of a few hundred bytes that prints as a billion items, and `[1] * 1000000000` computes its items when it
//! is printed. So the template's tree is built anew, with a filter of [`size`](super::size) around every expression that
//! makes a container or looks into one:
//!
//! - what makes a list, a tuple or a map (literals, `+`, `*`, slices, filters, calls) goes through `SETTLE` or, where the
//!   result cannot be larger than what it is made of, `COLLECT`. So every container has its items at hand, is of limited
//!   depth and size, and holds data only; nothing can come to hold itself.
//! - what takes time with the size of a container (comparisons, `in`, filters, tests, arguments of methods) pays for that
//!   size with `WEIGH`, slices for the length with `LENGTH`; printing pays to the engine, after the fact, but for a
//!   value of limited size. The engine charges every filter, ours too, for the length of a string that passes through it,
//!   so strings pay for loops and indices.
//! - filters and tests are those that chat templates use, by name; the engine's others fail when they are reached.
//!
//! Constants fold when the tree is compiled. That stays within the size of the source: strings fold up to 1 KiB, and a
//! product that may be of a list has a filter around it, so it is no constant.

mod expressions;
mod filters;

use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, Expr, Spanned, Stmt};
use minijinja::{ErrorKind, Value};

use super::size::{COLLECT, DATA, REFUSE};
use super::{Engine, fail};

/// Expressions in expressions, blocks in blocks, and links of chains such as `a + b + c` and `elif`.
const MAX_DEPTH: usize = 400;

/// The template with bounds.
///
/// # Errors
/// What is nested too deep.
pub(super) fn bounded<'a>(template: &Stmt<'a>) -> Engine<Stmt<'a>> {
    Bounds { depth: 0 }.statement(template)
}

fn through<'a>(filter: &'static str, expr: Expr<'a>) -> Expr<'a> {
    let span = expr.span();
    Expr::Filter(Spanned::new(ast::Filter { name: filter, expr: Some(expr), args: Vec::new() }, span))
}

/// An expression that fails when it is reached: what is not for chat templates may stand in a branch that is never taken.
fn refused<'a>(what: &str, span: Span) -> Expr<'a> {
    through(REFUSE, Expr::Const(Spanned::new(ast::Const { value: Value::from(what) }, span)))
}

fn is_constant(expr: &Expr<'_>) -> bool {
    matches!(expr, Expr::Const(_))
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

/// The state of the walk over a template.
struct Bounds {
    depth: usize,
}

impl Bounds {
    fn nested<T>(&mut self, build: impl FnOnce(&mut Self) -> Engine<T>) -> Engine<T> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let what = format!("its expressions or blocks are more than {MAX_DEPTH} deep");
            return Err(fail(ErrorKind::SyntaxError, what));
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
            Stmt::AutoEscape(old) => {
                let expr = refused("autoescape is for web pages", old.span());
                Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr }, old.span()))
            }
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
                other => {
                    let what = format!("a {} cannot be assigned to", other.description());
                    return Err(fail(ErrorKind::SyntaxError, what));
                }
            })
        })
    }
}
