//! What a policy says about itself, with its rules in a compact form.

use std::sync::Arc;

use api::kubernetes::K8sNetworkPolicy;
use api::{Action, Key, Kind, Order, PerformanceHint, PolicyType, Resource, Selector, StagedAction, Wrong};

use crate::problem::{Effect, Problem};
use crate::rules::{self, FROM_ACCOUNT, Fault, Rules, all_of, in_namespace, of_accounts, of_namespaces, parse};

/// What a policy says about itself, and its rules in a compact form.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PolicyFacts {
    pub tier: Box<str>,
    pub order: Order,
    /// Whom it selects. If that cannot be understood: everything that it might have meant.
    pub selector: Arc<Selector>,
    pub ingress: bool,
    pub egress: bool,
    pub hook: PolicyHook,
    pub staged: bool,
    /// Ready on every node, whether or not it selects something there.
    pub everywhere: bool,
    pub problems: Vec<Problem>,
    pub rules: PackedRules,
}

/// In place of a tier that cannot be read: no tier has such a name.
const UNKNOWN: &str = "?";

/// Where a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolicyHook {
    /// For packets of endpoints.
    Normal,
    /// Also for packets that are forwarded through host endpoints.
    NormalAndForward,
    /// Host endpoints only.
    PreDnat,
    /// Host endpoints only.
    Untracked,
}

/// The parts that all kinds of policies have.
struct Written<'a> {
    tier: &'a str,
    order: Order,
    selector: &'a str,
    namespace_selector: &'a str,
    account_selector: &'a str,
    types: [bool; 2],
    hints: &'a [PerformanceHint],
    rules: [&'a [api::Rule]; 2],
    hook: PolicyHook,
    staged: bool,
}

impl PolicyFacts {
    /// What a resource says; `None` if it is no policy, or a rehearsal of something else than setting one. A wrong one is a policy
    /// all the same.
    pub fn read(key: &Key, resource: &Resource) -> Option<Self> {
        let mut facts = Self::read_written(key, resource)?;
        let left_out = resource.metadata().left_out.iter().map(Fault::from).collect();
        facts.problems.extend(problems(key, left_out, Effect::NotEnforced));
        Some(facts)
    }

    fn read_written(key: &Key, resource: &Resource) -> Option<Self> {
        macro_rules! written {
            ($spec:expr, $namespaces:expr, $hook:expr, $staged:expr) => {
                Some(Self::new(
                    key,
                    &Written {
                        tier: $spec.tier(),
                        order: $spec.order,
                        selector: &$spec.selector,
                        namespace_selector: $namespaces,
                        account_selector: &$spec.service_account_selector,
                        types: [PolicyType::Ingress, PolicyType::Egress].map(|way| $spec.applies_to(way)),
                        hints: &$spec.performance_hints,
                        rules: [&$spec.ingress, &$spec.egress],
                        hook: $hook,
                        staged: $staged,
                    },
                ))
            };
        }
        let is_set = |action: Option<StagedAction>| action.unwrap_or_default() == StagedAction::Set;
        match resource {
            Resource::NetworkPolicy(policy) => {
                let spec = &policy.spec;
                written!(spec, "", PolicyHook::NormalAndForward, false)
            }
            Resource::GlobalNetworkPolicy(policy) => {
                let spec = &policy.spec;
                let hook = PolicyHook::of(spec.pre_dnat, spec.do_not_track, spec.apply_on_forward);
                written!(spec, &spec.namespace_selector, hook, false)
            }
            Resource::StagedNetworkPolicy(policy) if is_set(policy.spec.staged_action) => {
                let spec = &policy.spec;
                written!(spec, "", PolicyHook::NormalAndForward, true)
            }
            Resource::StagedGlobalNetworkPolicy(policy) if is_set(policy.spec.staged_action) => {
                let spec = &policy.spec;
                let hook = PolicyHook::of(spec.pre_dnat, spec.do_not_track, spec.apply_on_forward);
                written!(spec, &spec.namespace_selector, hook, true)
            }
            Resource::StagedKubernetesNetworkPolicy(policy) if is_set(policy.spec.staged_action) => {
                let kubernetes = K8sNetworkPolicy {
                    metadata: policy.metadata.clone(),
                    spec: policy.spec.enforced(),
                };
                let (converted, left_out) = kubernetes.to_network_policy();
                let spec = &converted.spec;
                let facts: Option<Self> = written!(spec, "", PolicyHook::NormalAndForward, true);
                let left_out = left_out.iter().map(Fault::from).collect();
                facts.map(|mut facts| {
                    let left_out = problems(key, left_out, Effect::NotEnforced);
                    facts.problems.extend(left_out);
                    facts
                })
            }
            Resource::Wrong(wrong) => Self::wrong(key, wrong),
            _ => None,
        }
    }

    /// What is known of a policy that cannot be read as a whole. What is in doubt is what it may have meant at most; of its place
    /// among others, the first.
    fn wrong(key: &Key, wrong: &Wrong) -> Option<Self> {
        let staged = match key.kind {
            Kind::NetworkPolicy | Kind::GlobalNetworkPolicy => false,
            Kind::StagedNetworkPolicy | Kind::StagedGlobalNetworkPolicy | Kind::StagedKubernetesNetworkPolicy => true,
            _ => return None,
        };
        let mut facts = match wrong.readable() {
            Some(readable) => Self::read(key, readable)?,
            None => Self::new(
                key,
                &Written {
                    tier: UNKNOWN,
                    order: Order::whole(i32::MIN),
                    selector: "",
                    namespace_selector: "",
                    account_selector: "",
                    types: [true; 2],
                    hints: &[],
                    rules: [&[]; 2],
                    hook: PolicyHook::Normal,
                    staged,
                },
            ),
        };
        if wrong.is_in_doubt("spec.tier") {
            facts.tier = UNKNOWN.into();
        }
        if wrong.is_in_doubt("spec.order") {
            facts.order = Order::whole(i32::MIN);
        }
        let may_forward = ["spec.applyOnForward", "spec.preDNAT", "spec.doNotTrack"]
            .into_iter()
            .any(|field| wrong.is_in_doubt(field));
        if facts.hook == PolicyHook::Normal && may_forward {
            facts.hook = PolicyHook::NormalAndForward;
        }
        if ["spec.types", "spec.ingress", "spec.egress"]
            .into_iter()
            .any(|field| wrong.is_in_doubt(field))
            && !says_types(wrong)
        {
            facts.ingress = true;
            facts.egress = facts.hook != PolicyHook::PreDnat;
        }
        let faults = wrong.problems().iter().map(Fault::from).collect();
        facts
            .problems
            .splice(0..0, problems(key, faults, Effect::of_policy(staged)));
        Some(facts)
    }

    fn new(key: &Key, written: &Written<'_>) -> Self {
        let mut faults = Vec::new();
        let selector = selector(key.namespace.as_deref(), written, &mut faults);
        let [ingress, egress] = written.rules;
        let rules = rules::check(ingress, egress, key.namespace.as_deref());
        faults.extend(rules.faults);
        let mut problems = problems(key, faults, Effect::of_policy(written.staged));
        problems.extend(self::problems(key, rules.ignored, Effect::NotEnforced));
        Self {
            tier: written.tier.into(),
            order: written.order,
            selector: Arc::new(selector),
            ingress: written.types[0],
            egress: written.types[1] && written.hook != PolicyHook::PreDnat,
            hook: written.hook,
            staged: written.staged,
            everywhere: written.hints.contains(&PerformanceHint::AssumeNeededOnEveryNode),
            problems,
            rules: PackedRules::new(ingress, egress),
        }
    }

    /// Why it cannot be followed, if so.
    pub fn broken(&self) -> Option<&Problem> {
        self.problems
            .iter()
            .find(|problem| problem.effect != Effect::NotEnforced)
    }

    /// Its rules. One that cannot be followed denies (`denies`): whoever comes before it decides the same, whatever it meant.
    pub fn packed(&self, denies: bool) -> PackedRules {
        let deny = [api::Rule::any(Action::Deny)];
        match denies {
            true => PackedRules::new(&deny, &deny),
            false => self.rules.clone(),
        }
    }

    /// Whether it is asked where, and in the place in which, the other one is.
    pub fn is_placed_as(&self, other: &Self) -> bool {
        let Self {
            tier,
            order,
            selector: _,
            ingress,
            egress,
            hook,
            staged,
            everywhere: _,
            problems,
            rules: _,
        } = self;
        (tier, order, ingress, egress) == (&other.tier, &other.order, &other.ingress, &other.egress)
            && (hook, staged, problems) == (&other.hook, &other.staged, &other.problems)
    }

    /// Whom it selects, and why it cannot be followed, for people.
    pub fn selector_text(&self, why_not: Option<String>) -> String {
        match why_not {
            Some(why) => format!("{}, but cannot be followed: {why}", self.selector),
            None => self.selector.to_string(),
        }
    }
}

/// Whether the directions of a wrong policy can be read, so that its rules have no say in them.
fn says_types(wrong: &Wrong) -> bool {
    let types = match wrong.readable() {
        Some(Resource::NetworkPolicy(policy)) => &policy.spec.types,
        Some(Resource::GlobalNetworkPolicy(policy)) => &policy.spec.types,
        _ => return false,
    };
    !types.is_empty() && !wrong.is_in_doubt("spec.types")
}

impl Effect {
    /// What follows from not being able to follow a policy.
    pub(crate) fn of_policy(staged: bool) -> Self {
        match staged {
            true => Effect::NotReported,
            false => Effect::Denies,
        }
    }
}

impl PolicyHook {
    fn of(pre_dnat: bool, do_not_track: bool, apply_on_forward: bool) -> Self {
        match (pre_dnat, do_not_track, apply_on_forward) {
            (_, true, _) => PolicyHook::Untracked,
            (true, false, _) => PolicyHook::PreDnat,
            (false, false, true) => PolicyHook::NormalAndForward,
            (false, false, false) => PolicyHook::Normal,
        }
    }
}

/// Whom a policy selects: at most, if one of its selectors cannot be read. The others still say whom it does not.
fn selector(namespace: Option<&str>, written: &Written<'_>, faults: &mut Vec<Fault>) -> Selector {
    let mut read = |field: &str, text: &str, turn: &dyn Fn(Selector) -> Selector| match text {
        "" => None,
        text => match parse(text) {
            Ok(selector) => Some(turn(selector)),
            Err(why) => {
                faults.push(Fault::new(field, text, why));
                None
            }
        },
    };
    let own = read("spec.selector", written.selector, &|selector| selector);
    let namespaces = read("spec.namespaceSelector", written.namespace_selector, &|selector| {
        of_namespaces(&selector)
    });
    let accounts = read("spec.serviceAccountSelector", written.account_selector, &|selector| {
        // Upstream: in a namespace, `all()` means all of it, also what has no account.
        match namespace {
            Some(_) => selector.with_label_prefix(FROM_ACCOUNT),
            None => of_accounts(&selector),
        }
    });
    let within = namespace.map(in_namespace);
    all_of([within, own, namespaces, accounts]).unwrap_or(Selector::ALL)
}

/// What cannot be followed in a policy, staged or not, whatever its tier; `None` if it is no policy.
pub fn problems_of(resource: &Resource) -> Option<Vec<Problem>> {
    PolicyFacts::read(&resource.key(), resource).map(|facts| facts.problems)
}

/// Faults of a resource as problems.
pub(crate) fn problems(key: &Key, faults: Vec<Fault>, effect: Effect) -> Vec<Problem> {
    let problem = |fault: Fault| Problem {
        key: key.clone(),
        field: fault.field,
        value: fault.value,
        text: fault.text,
        effect,
    };
    faults.into_iter().map(problem).collect()
}

/// Rules as text: most policies of a cluster are not needed on a node, and a rule as a value takes 700 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct PackedRules(Arc<str>);

impl PackedRules {
    pub fn new(ingress: &[api::Rule], egress: &[api::Rule]) -> Self {
        match (ingress, egress) {
            ([], []) => Self::default(),
            // Rules have only text keys and finite numbers; should one not be text, it is read as what denies all.
            rules => Self(
                serde_json::to_string(&rules)
                    .unwrap_or_else(|_| "unreadable".to_owned())
                    .into(),
            ),
        }
    }

    /// The rules over sets; what cannot be read denies all.
    pub fn translate(&self, namespace: Option<&str>) -> Rules {
        if self.0.is_empty() {
            return Rules::default();
        }
        let (ingress, egress) = serde_json::from_str(&self.0).unwrap_or_else(|_| {
            let deny = || vec![api::Rule::any(api::Action::Deny)];
            (deny(), deny())
        });
        rules::translate(&ingress, &egress, namespace)
    }
}

impl From<&PackedRules> for PackedRules {
    fn from(rules: &PackedRules) -> Self {
        rules.clone()
    }
}
