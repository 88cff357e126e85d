//! The agent's settings after precedence: built in, `default`, a selector-scoped object, `node.<name>`.

use std::sync::Arc;

use api::{FelixConfigurationSpec, Key, Kind};

use crate::facts::{Aged, Facts};
use crate::problem::Problem;
use crate::selector::Selector;
use crate::state::Settings;
use crate::unheeded::unheeded;

/// What applies to this node. The more special layer overrides field by field; of several selector-scoped objects that
/// match, the oldest one applies alone.
pub(crate) fn settings(this: &str, facts: &Facts) -> (Settings, Vec<Problem>) {
    let mut problems = Vec::new();
    let own = format!("node.{this}");
    let scoped = scoped(this, facts, &mut problems);
    let layers = [
        ("default", facts.felix.get("default")),
        scoped.map_or(("", None), |(name, layer)| (name.as_str(), Some(layer))),
        (own.as_str(), facts.felix.get(&own)),
    ];
    let layers = layers
        .into_iter()
        .filter_map(|(name, layer)| Some((name, &layer?.spec)));
    problems.extend(unheeded(layers.clone()));
    let specs = layers.map(|(_, spec)| spec.clone());
    let spec = specs
        .reduce(|general, special| special.over(general))
        .unwrap_or_default();
    let built_in = Settings::default();
    let settings = Settings {
        ipip_mtu: spec.ipip_mtu.filter(|mtu| *mtu != 0),
        ipip_enabled: spec.ipip_enabled,
        ipv4_metric: spec.ipv4_normal_route_priority.unwrap_or(built_in.ipv4_metric),
        ipv6_metric: spec.ipv6_normal_route_priority.unwrap_or(built_in.ipv6_metric),
        log_severity: spec.log_severity_screen,
        felix: Arc::new(spec),
    };
    (settings, problems)
}

type Scoped<'a> = (&'a String, &'a Aged<FelixConfigurationSpec>);

fn scoped<'a>(this: &str, facts: &'a Facts, problems: &mut Vec<Problem>) -> Option<Scoped<'a>> {
    let labels = facts.nodes.get(this).map(|node| &node.labels);
    let mut matching: Vec<Scoped<'_>> = Vec::new();
    for (name, config) in &facts.felix {
        if name == "default" || name.starts_with("node.") {
            continue;
        }
        let key = || Key::cluster(Kind::FelixConfiguration, name.as_str());
        let Some(text) = config.spec.node_selector.as_deref().filter(|text| !text.is_empty()) else {
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
    Some(*winner)
}
