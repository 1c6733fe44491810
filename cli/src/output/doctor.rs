//! A node's protections, as text: a table, then what to do about what is missing.

use std::fmt::Write as _;

use netfabric::wire::api::{Check, Diagnosis};

use super::plain_table;

pub fn diagnosis(of: &Diagnosis) -> String {
    let mut text = format!("node {}, Linux {}\n\n", of.node, of.kernel);
    let rows = of.checks.iter().map(|check| {
        vec![
            check.name.clone(),
            state(check).to_owned(),
            check.found.clone(),
        ]
    });
    text.push_str(&plain_table(&["CHECK", "STATE", "FOUND"], rows));
    text.push('\n');
    for check in of.checks.iter().filter(|check| !check.ok) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n{}: {}\n  then: {}\n  to do: {}\n",
            check.name, check.found, check.effect, check.advice
        );
    }
    for port in &of.closed_ports {
        let _ = write!(text, "\nA service's port stays closed: {port}\n");
    }
    text
}

/// How a node keeps its containers' users apart from its own, in a line; nothing when it is not known.
pub fn isolation(of: Option<&Diagnosis>) -> String {
    let check = of.and_then(|d| {
        d.checks
            .iter()
            .find(|check| check.name == "user-namespaces")
    });
    match check {
        None => String::new(),
        Some(check) if check.ok => "a user namespace per instance".to_owned(),
        Some(check) => format!("NO user namespaces: {} (selvedge doctor)", check.found),
    }
}

fn state(check: &Check) -> &'static str {
    match (check.ok, check.required) {
        (true, _) => "ok",
        (false, true) => "MISSING",
        (false, false) => "missing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, ok: bool, required: bool) -> Check {
        let text = |what: &str| {
            if ok {
                String::new()
            } else {
                format!("{name}'s {what}")
            }
        };
        Check {
            name: name.to_owned(),
            ok,
            required,
            found: format!("{name}'s finding"),
            effect: text("effect"),
            advice: text("advice"),
        }
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let mut of = Diagnosis {
            node: "par-1".parse().unwrap(),
            kernel: "6.1.0".into(),
            checks: vec![
                check("seccomp", true, true),
                check("user-namespaces", false, false),
            ],
            closed_ports: vec![],
        };
        assert!(of.is_sound());
        insta::assert_snapshot!(diagnosis(&of), @r"
        node par-1, Linux 6.1.0

        CHECK             STATE     FOUND
        seccomp           ok        seccomp's finding
        user-namespaces   missing   user-namespaces's finding

        user-namespaces: user-namespaces's finding
          then: user-namespaces's effect
          to do: user-namespaces's advice
        ");
        assert!(isolation(Some(&of)).starts_with("NO user namespaces"));
        of.checks.push(check("cgroups", false, true));
        assert!(!of.is_sound());
        assert_eq!(isolation(None), "");
    }
}
