//! How the story looks: acts, hops, details, tokens; below 100 columns, in colour only for a terminal.

use std::io::IsTerminal as _;

use jira_connect_proxy::jwt::{qsh::Rule, target::Target};
use serde_json::Value;

use crate::fakes::jira::now;

/// Columns of a line.
const WIDTH: usize = 98;

/// Where details start, behind their labels.
const INDENT: usize = 12;

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// Writes to standard output.
pub struct Narrator {
    colour: bool,
    act: usize,
    last: Block,
    proven: Vec<&'static str>,
}

/// What was written last: blocks of different kinds stand apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Hop,
    Proof,
}

/// A token on its way, decoded.
pub struct Token<'a> {
    pub signed_by: &'a str,
    pub kid: &'a str,
    pub claims: &'a Value,
    /// What its query string hash must be the hash of.
    pub request: &'a Canonical,
}

/// A request in the form that is hashed, and the hash.
pub struct Canonical {
    text: String,
    hash: String,
}

impl Narrator {
    pub fn new() -> Self {
        Self {
            colour: std::io::stdout().is_terminal(),
            act: 0,
            last: Block::Text,
            proven: Vec::new(),
        }
    }

    /// A line of its own.
    pub fn title(&self, text: &str) {
        println!("{}", self.paint(BOLD, text));
    }

    /// The next act begins.
    pub fn act(&mut self, title: &str) {
        self.act += 1;
        self.last = Block::Text;
        self.heading(&format!("{}. {title}", self.act));
    }

    /// A paragraph.
    pub fn say(&self, text: &str) {
        println!("{}", wrapped(text, 0));
    }

    /// Somebody who plays.
    pub fn role(&self, who: &str, what: &str) {
        println!(
            "  {} {}",
            self.paint(BOLD, &format!("{who:<9}")),
            wrapped(what, INDENT)
        );
    }

    /// One party sends something to another; its details follow.
    pub fn hop(&mut self, from: &str, to: &str, what: &str) {
        println!();
        let arrow = self.paint(CYAN, "->");
        println!(
            "  {} {arrow} {}",
            self.paint(BOLD, from),
            self.paint(BOLD, to)
        );
        println!("    {}", self.paint(CYAN, what));
        self.last = Block::Hop;
    }

    /// What one party does by itself; the details follow.
    pub fn party(&mut self, who: &str) {
        self.apart(Block::Hop);
        println!("  {}", self.paint(BOLD, who));
    }

    /// One detail of the party or hop above; lines stay lines.
    pub fn detail(&mut self, label: &str, text: &str) {
        self.apart(Block::Hop);
        let label = self.paint(DIM, &format!("    {label:<8}"));
        println!("{label}{}", wrapped(text, INDENT));
    }

    /// What a token says.
    pub fn token(&mut self, token: &Token<'_>) -> anyhow::Result<()> {
        let Token {
            claims, request, ..
        } = token;
        anyhow::ensure!(
            claims["qsh"] == request.hash.as_str(),
            "qsh is not the hash of {}",
            request.text
        );
        let text = |name: &str| claims[name].as_str().unwrap_or("none").to_owned();
        let ago = now().as_second() - claims["iat"].as_i64().unwrap_or_default();
        let life = claims["exp"].as_i64().unwrap_or_default() - now().as_second();
        let audiences: Vec<&str> = claims["aud"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        self.detail(
            "token",
            &format!("RS256, signed by {}; decoded:", token.signed_by),
        );
        self.detail("  kid", token.kid);
        self.detail("  iss", &text("iss"));
        self.detail("  aud", &audiences.join("\n"));
        self.detail("  qsh", &text("qsh"));
        self.detail("", &format!("the SHA-256 of {}", request.text));
        self.detail("  iat", &format!("{ago} s ago"));
        self.detail("  exp", &format!("in {life} s"));
        self.detail("  jti", &text("jti"));
        Ok(())
    }

    /// Goes on only if the claim holds; the summary will repeat it.
    pub fn prove(
        &mut self,
        claim: &'static str,
        holds: bool,
        found: impl FnOnce() -> String,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(holds, "NOT PROVEN: {claim}; found: {}", found());
        self.apart(Block::Proof);
        println!("  {} {}", self.paint(GREEN, "proven:"), wrapped(claim, 10));
        self.proven.push(claim);
        Ok(())
    }

    /// Everything that was proven.
    pub fn summary(&self) {
        self.heading(&format!("Proven, all {}", self.proven.len()));
        for (at, claim) in self.proven.iter().enumerate() {
            let number = self.paint(GREEN, &format!("{:>4}.", at + 1));
            println!("{number} {}", wrapped(claim, 6));
        }
    }

    fn heading(&self, text: &str) {
        let line = format!("{:=<WIDTH$}", format!("== {text} "));
        println!("\n{}", self.paint(BOLD, &line));
    }

    fn apart(&mut self, block: Block) {
        if self.last != block {
            println!();
        }
        self.last = block;
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// The canonical form of a POST by somebody's rule.
pub fn canonical(rule: Rule, path: &str, base_path: &str) -> anyhow::Result<Canonical> {
    let target = Target::parse(path)?;
    let below = format!(" (below {base_path})");
    Ok(Canonical {
        text: rule.canonical("POST", &target, base_path) + &below,
        hash: rule.qsh("POST", &target, base_path).as_str().to_owned(),
    })
}

/// Breaks lines at spaces; all but the first are indented.
fn wrapped(text: &str, indent: usize) -> String {
    let margin = format!("\n{:indent$}", "");
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| broken(line, indent, &margin))
        .collect();
    lines.join(&margin)
}

fn broken(line: &str, indent: usize, margin: &str) -> String {
    let mut broken = String::new();
    let mut column = indent;
    for word in line.split(' ') {
        let length = word.chars().count();
        if column > indent {
            let fits = column + 1 + length <= WIDTH;
            broken.push_str(if fits { " " } else { margin });
            column = if fits { column + 1 } else { indent };
        }
        broken.push_str(word);
        column += length;
    }
    broken
}
