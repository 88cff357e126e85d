//! Verdicts as text for people.

use std::fmt;

use super::{Connection, Hook, Matched, Outcome, Owner, Step, Verdict, Way};
use crate::state::{EndpointId, TierEnd};

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.way, self.endpoint)?;
        match self.hook {
            Hook::Normal => {}
            Hook::Forward => f.write_str(", forwarded")?,
            Hook::PreDnat => f.write_str(", before DNAT")?,
            Hook::Untracked => f.write_str(", untracked")?,
        }
        writeln!(f, ": {}", self.outcome)?;
        for step in &self.trace {
            writeln!(f, "  {step}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for verdict in [&self.from, &self.to].into_iter().flatten() {
            verdict.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Ingress => "to",
            Way::Egress => "from",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Allow => "allowed",
            Outcome::Deny => "denied",
            Outcome::Undecided => "goes on",
        })
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndpointId::Workload(key) => key.fmt(f),
            EndpointId::Host(name) => write!(f, "HostEndpoint({name})"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::NoEndpoint => f.write_str("no such endpoint is known on this node"),
            Step::Closed(why) => write!(f, "everything is denied: {why}"),
            Step::Spoofed(source) => write!(f, "{source} is not an address of this workload"),
            Step::Rule(matched) => matched.fmt(f),
            Step::NoPolicy(id) => write!(f, "{id} is not there: denied"),
            Step::TierEnd { tier, end } => match end {
                TierEnd::Deny => write!(
                    f,
                    "tier {tier}: policies apply, no rule matched: denied at the end of the tier"
                ),
                TierEnd::Pass => write!(f, "tier {tier}: no rule matched: on to the next tier"),
            },
            Step::NoProfile(name) => write!(f, "profile {name} does not exist: it allows nothing"),
            Step::NothingMatched => f.write_str("no policy and no profile allowed it: denied"),
            Step::NothingApplies => f.write_str("no policy applies here"),
        }
    }
}

impl fmt::Display for Matched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Policy { tier, id, .. } => write!(f, "tier {tier}: {id}")?,
            Owner::Profile(name) => write!(f, "profile {name}")?,
        }
        let list = match self.way {
            Way::Ingress => "ingress",
            Way::Egress => "egress",
        };
        write!(f, " {list} rule {}: {:?}", self.index, self.action)?;
        if let Owner::Policy { selector, .. } = &self.owner {
            write!(f, "; selects {selector}")?;
        }
        for meaning in &self.found_in {
            write!(f, "; matched {meaning}")?;
        }
        Ok(())
    }
}
