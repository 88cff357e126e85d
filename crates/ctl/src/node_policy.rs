//! `node policy`: network policy of this node as its agent has compiled it, with what the kernel's rules have counted.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use agent::policy_view::{DropView, EndpointView, PolicyView, RuleView, RulesView};
use clap::Args;

use crate::command::StatusFormat;
use crate::{CtlError, output};

/// How often `--watch` looks.
const EVERY: Duration = Duration::from_secs(1);

/// Flags of `node policy`.
#[derive(Args, Clone, Debug)]
pub struct NodePolicyArgs {
    /// The agent's run directory
    #[arg(long, env = "MARGAY_RUN_DIR", default_value = "/run/margay", value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Show it again every second, with what came since, until it is interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// Only endpoints, policies and profiles with this in their names
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: StatusFormat,
}

/// Asks the agent and shows what it says.
pub async fn policy(args: &NodePolicyArgs, out: &mut dyn Write) -> Result<(), CtlError> {
    let socket = agent::http::socket(&args.run_dir);
    let mut before: Option<PolicyView> = None;
    loop {
        let view = agent::http::ask_policy(&socket)?;
        let shown = match args.output {
            StatusFormat::Json => out.write_all(output::json(&view).as_bytes()),
            StatusFormat::Text => {
                if args.watch && io::stdout().is_terminal() {
                    // Home, and everything below is wiped.
                    out.write_all(b"\x1b[H\x1b[J").map_err(CtlError::output)?;
                }
                text(&view, before.as_ref(), args.name.as_deref(), out)
            }
        };
        shown.and_then(|()| out.flush()).map_err(CtlError::output)?;
        if !args.watch {
            return Ok(());
        }
        before = Some(view);
        tokio::time::sleep(EVERY).await;
    }
}

/// The view as text. With an earlier one, counters tell what came since.
pub fn text(view: &PolicyView, before: Option<&PolicyView>, name: Option<&str>, out: &mut dyn Write) -> io::Result<()> {
    let is_meant = |id: &str| name.is_none_or(|name| id.contains(name));
    let members: usize = view.sets.iter().map(|set| set.members).sum();
    let enforced = view.endpoints.iter().filter(|endpoint| endpoint.enforced).count();
    writeln!(
        out,
        "{enforced} of {} enforced; {}, {}, {} with {}",
        number(view.endpoints.len(), "endpoint", "endpoints"),
        number(view.policies.len(), "policy", "policies"),
        number(view.profiles.len(), "profile", "profiles"),
        number(view.sets.len(), "set", "sets"),
        number(members, "member", "members")
    )?;
    if let Some(why) = &view.broken {
        writeln!(out, "the packet filter cannot be asked or told: {why}")?;
    }
    let since = Since::new(before);
    for endpoint in view.endpoints.iter().filter(|endpoint| is_meant(&endpoint.id)) {
        write_endpoint(endpoint, &since, out)?;
    }
    let rules = view.policies.iter().chain(&view.profiles);
    for rules in rules.filter(|rules| is_meant(&rules.id)) {
        write_rules(rules, &since, out)?;
    }
    if name.is_none() && !view.sets.is_empty() {
        writeln!(out, "\nSets")?;
        for set in &view.sets {
            writeln!(out, "  {:>7} {}  {}", set.members, set.id, set.meaning)?;
        }
    }
    if name.is_none() {
        writeln!(out, "\nDropped")?;
        write_drops(&view.drops, "", &since, out)?;
        if view.drops.is_empty() {
            writeln!(out, "  nothing")?;
        }
    }
    for problem in &view.problems {
        writeln!(out, "problem: {problem}")?;
    }
    Ok(())
}

fn write_endpoint(endpoint: &EndpointView, since: &Since<'_>, out: &mut dyn Write) -> io::Result<()> {
    let mut known = vec![endpoint.interface.clone()];
    known.extend(endpoint.addresses.iter().cloned());
    let state = match endpoint.enforced {
        true => "",
        false => ": NOT ENFORCED",
    };
    writeln!(out, "\n{} ({}){state}", endpoint.id, known.join(", "))?;
    if let Some(why) = &endpoint.closed {
        writeln!(out, "  everything is denied: {why}")?;
    }
    for hook in &endpoint.hooks {
        for tier in &hook.tiers {
            let staged = tier.staged.iter().map(|id| format!("{id} (staged)"));
            let policies: Vec<String> = tier.policies.iter().cloned().chain(staged).collect();
            writeln!(
                out,
                "  {:<8} tier {}: {}; then {}",
                hook.hook,
                tier.name,
                policies.join(", "),
                tier.end
            )?;
        }
    }
    writeln!(
        out,
        "  profiles {}",
        match endpoint.profiles.is_empty() {
            true => "none".to_owned(),
            false => endpoint.profiles.join(", "),
        }
    )?;
    write_drops(&endpoint.drops, &endpoint.id, since, out)
}

fn write_rules(rules: &RulesView, since: &Since<'_>, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "\n{}", rules.id)?;
    if let Some(tier) = &rules.tier {
        write!(out, ", tier {tier}")?;
    }
    match &rules.selector {
        Some(selector) => writeln!(out, ", selects {selector}")?,
        None if rules.missing => writeln!(out, " does not exist: it allows nothing")?,
        None => writeln!(out)?,
    }
    for rule in &rules.rules {
        let counted = match (rule.packets, rule.kernel_rules) {
            (Some(packets), _) => {
                let more = since.rule(&rules.id, rule);
                format!("{packets}{}", plus(packets, more))
            }
            (None, 0) => "not in the kernel".to_owned(),
            (None, _) => "-".to_owned(),
        };
        writeln!(out, "  {:<7} {:>3} {counted:>9}  {}", rule.way, rule.index, rule.text)?;
    }
    Ok(())
}

fn write_drops(drops: &[DropView], of: &str, since: &Since<'_>, out: &mut dyn Write) -> io::Result<()> {
    for drop in drops {
        let plus = plus(drop.packets, since.drop(of, drop));
        writeln!(out, "  {:>7}{plus} dropped: {}", drop.packets, drop.why)?;
    }
    Ok(())
}

fn number(count: usize, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        count => format!("{count} {many}"),
    }
}

/// ` (+3)`, if something came since.
fn plus(now: u64, before: Option<u64>) -> String {
    match before.map(|before| now.saturating_sub(before)) {
        Some(more) if more > 0 => format!(" (+{more})"),
        Some(_) | None => String::new(),
    }
}

/// Counters of an earlier view.
struct Since<'a> {
    rules: BTreeMap<(&'a str, &'a str, usize), u64>,
    drops: BTreeMap<(&'a str, &'a str), u64>,
    is_known: bool,
}

impl<'a> Since<'a> {
    fn new(before: Option<&'a PolicyView>) -> Self {
        let mut since = Self {
            rules: BTreeMap::new(),
            drops: BTreeMap::new(),
            is_known: before.is_some(),
        };
        let Some(view) = before else { return since };
        for rules in view.policies.iter().chain(&view.profiles) {
            for rule in &rules.rules {
                let key = (rules.id.as_str(), rule.way.as_str(), rule.index);
                since.rules.insert(key, rule.packets.unwrap_or_default());
            }
        }
        let own = view
            .endpoints
            .iter()
            .map(|endpoint| (endpoint.id.as_str(), &endpoint.drops));
        for (of, drops) in own.chain([("", &view.drops)]) {
            since
                .drops
                .extend(drops.iter().map(|drop| ((of, drop.why.as_str()), drop.packets)));
        }
        since
    }

    /// What a rule had counted; what was not there had counted nothing.
    fn rule(&self, id: &str, rule: &RuleView) -> Option<u64> {
        let before = self.rules.get(&(id, rule.way.as_str(), rule.index));
        self.is_known.then(|| before.copied().unwrap_or_default())
    }

    fn drop(&self, of: &str, drop: &DropView) -> Option<u64> {
        let before = self.drops.get(&(of, drop.why.as_str()));
        self.is_known.then(|| before.copied().unwrap_or_default())
    }
}
