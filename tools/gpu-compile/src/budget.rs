//! What kernels may take: `budgets.json`.

use serde_json::Value;

use crate::model::Figures;

/// A line of the list: kernels, cards, and what is allowed them.
#[derive(Debug)]
struct Rule {
    /// Labels start with it.
    kernel: String,
    /// Words that a label has, such as `HEAD_DIM=128`.
    with: Vec<String>,
    /// Cards; none: all.
    cards: Vec<String>,
    spills: Option<u64>,
    share: Option<f64>,
    reason: String,
}

/// The list. The first rule that fits and has a number sets it; a kernel of no rule must not spill.
#[derive(Debug)]
pub(crate) struct Budgets {
    /// Release of Mesa whose compilers the numbers are from.
    mesa: String,
    rules: Vec<Rule>,
}

/// What a kernel does that it must not.
#[derive(Debug, PartialEq)]
pub(crate) struct Breach(pub(crate) String);

impl Budgets {
    /// Reads the list.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let all: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let mesa = all["mesa"].as_str().ok_or("no release of Mesa")?.to_string();
        let mut rules = Vec::new();
        for (i, rule) in all["rules"].as_array().ok_or("no rules")?.iter().enumerate() {
            let fields = rule.as_object().ok_or(format!("rule {i} is no object"))?;
            const NAMES: [&str; 6] = ["kernel", "with", "cards", "spills", "share", "reason"];
            if let Some(other) = fields.keys().find(|k| !NAMES.contains(&k.as_str())) {
                return Err(format!("rule {i} has a field {other:?}; there are: {NAMES:?}"));
            }
            let words = |name: &str| -> Result<Vec<String>, String> {
                let Some(value) = fields.get(name) else { return Ok(Vec::new()) };
                let list = value.as_array().ok_or(format!("rule {i}: {name} is no list"))?;
                list.iter()
                    .map(|w| Ok(w.as_str().ok_or(format!("rule {i}: {name}"))?.to_string()))
                    .collect()
            };
            let cards = words("cards")?;
            if let Some(other) = cards.iter().find(|c| crate::card::Card::find(c).is_none()) {
                return Err(format!("rule {i}: there is no card {other:?}"));
            }
            let text = |name: &str| fields.get(name).and_then(Value::as_str).map(String::from);
            rules.push(Rule {
                kernel: text("kernel").ok_or(format!("rule {i} names no kernel"))?,
                with: words("with")?,
                cards,
                spills: fields.get("spills").and_then(Value::as_u64),
                share: fields.get("share").and_then(Value::as_f64),
                // an exception says why it is one
                reason: text("reason").ok_or(format!("rule {i} has no reason"))?,
            });
        }
        Ok(Self { mesa, rules })
    }

    /// Whether the numbers are of this driver's release. Others are held against them and reported, but
    /// fail nothing: compilers differ.
    pub(crate) fn are_of(&self, driver: &str) -> bool {
        let release =
            driver.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        let digits = |text: &str| text.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        release.is_some_and(|r| digits(r) == digits(&self.mesa))
    }

    pub(crate) fn mesa(&self) -> &str {
        &self.mesa
    }

    /// What a kernel breaks on a card.
    pub(crate) fn check(&self, label: &str, card: &str, figures: &Figures) -> Vec<Breach> {
        let fits = |rule: &&Rule| {
            label.starts_with(&rule.kernel)
                && rule.with.iter().all(|w| label.split_whitespace().any(|l| l == w))
                && (rule.cards.is_empty() || rule.cards.iter().any(|c| c == card))
        };
        let mut found = Vec::new();
        let rule = self.rules.iter().filter(fits).find(|r| r.spills.is_some());
        let (most, why) =
            rule.map_or((0, "none is allowed"), |r| (r.spills.unwrap_or(0), r.reason.as_str()));
        if figures.spills > most {
            found.push(Breach(format!("{} spills, at most {most} ({why})", figures.spills)));
        }
        let rule = self.rules.iter().filter(fits).find(|r| r.share.is_some());
        if let (Some(rule), Some(share)) = (rule, figures.share) {
            let least = rule.share.unwrap_or(0.0);
            if share < least {
                found.push(Breach(format!(
                    "multiply-adds are {:.1} % of the hot loop, at least {:.1} % ({})",
                    100.0 * share,
                    100.0 * least,
                    rule.reason
                )));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{Mix, Part};

    const TEXT: &str = r#"{"mesa": "26.2.6", "rules": [
        {"kernel": "attention/flash:", "with": ["DIM=128"], "cards": ["ada"], "spills": 90, "reason": "rows"},
        {"kernel": "attention/", "share": 0.4, "reason": "measured"}]}"#;

    fn figures(spills: u64, share: Option<f64>) -> Figures {
        Figures {
            subgroup: 32,
            registers: 255,
            spills,
            fills: None,
            scalar_spills: 0,
            workgroup_memory: 0,
            waves: None,
            code: 0,
            part: Part::Whole,
            mix: Mix::default(),
            share,
            bound: None,
        }
    }

    #[test]
    fn both_numbers_are_named_where_a_budget_is_broken() {
        let budgets = Budgets::parse(TEXT).unwrap();
        let check = |label, card, spills, share| -> Vec<String> {
            let found = budgets.check(label, card, &figures(spills, share));
            found.into_iter().map(|b| b.0).collect()
        };
        let flash = "attention/flash:attend DIM=128 CAUSAL=false";
        assert!(check(flash, "ada", 90, Some(0.4)).is_empty());
        assert_eq!(check(flash, "ada", 91, None), ["91 spills, at most 90 (rows)"]);
        assert_eq!(check(flash, "dg2", 1, None), ["1 spills, at most 0 (none is allowed)"]);
        assert_eq!(check("attention/flash:attend DIM=1280", "ada", 1, None).len(), 1);
        assert_eq!(check("fft/pass:run", "ada", 0, Some(0.1)).len(), 0);
        let said = check(flash, "dg2", 0, Some(0.375)).pop().unwrap();
        assert_eq!(said, "multiply-adds are 37.5 % of the hot loop, at least 40.0 % (measured)");
    }

    #[test]
    fn budgets_are_of_one_release_of_mesa() {
        let budgets = Budgets::parse(TEXT).unwrap();
        assert!(budgets.are_of("Mesa 26.2.6-1") && budgets.are_of("Mesa 26.2.9"));
        assert!(
            !budgets.are_of("Mesa 26.20.1") && !budgets.are_of("Mesa 27.0") && !budgets.are_of("")
        );
    }

    #[test]
    fn a_list_that_is_not_understood_is_refused() {
        for (text, wanted) in [
            (r#"{"rules": []}"#, "no release of Mesa"),
            (r#"{"mesa": "26.2", "rules": [{"kernel": "a"}]}"#, "no reason"),
            (r#"{"mesa": "26.2", "rules": [{"reason": "a"}]}"#, "names no kernel"),
            (
                r#"{"mesa": "26.2", "rules": [{"kernel": "a", "reason": "b", "cards": ["x"]}]}"#,
                "no card",
            ),
            (
                r#"{"mesa": "26.2", "rules": [{"kernel": "a", "reason": "b", "spill": 1}]}"#,
                "a field",
            ),
        ] {
            let said = Budgets::parse(text).unwrap_err();
            assert!(said.contains(wanted), "{said}");
        }
    }

    /// The project's own list can be read.
    #[test]
    fn the_list_here_is_sound() {
        Budgets::parse(include_str!("../budgets.json")).unwrap();
    }
}
