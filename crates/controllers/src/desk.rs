//! Where everything that is decided is decided: updates in, actions out, in virtual time.
//!
//! Decides nothing while the datastore's picture is not whole, while this process does not lead, or while the cluster's
//! datastore is said not to be ready. One thing it does without definitions: pools and tiers that are being deleted are let
//! go, or their own definitions, which wait for them, could never go and be made again. What was in doubt before such a time
//! is in doubt anew after it: the grace period of a leak starts when whoever leads sees it for the first time.

use std::collections::BTreeSet;

use api::{
    ClusterInformationSpec, IP_POOL_FINALIZER, Kind, KubeControllersConfigurationSpec, Resource, TIER_FINALIZER,
};
use datastore::{StoreError, SyncEvent, Update};
use ipam::{Collector, Suspect};
use jiff::{SignedDuration, Timestamp};

use crate::action::Action;
use crate::nodes::{self, Absences, Attendance};
use crate::settings::{Environment, Settings};
use crate::validity::Validity;
use crate::world::World;
use crate::{host_endpoints, ipam_gc, pools, refusals, tiers};

/// How long after a failure everything is looked at again.
const RETRY: SignedDuration = SignedDuration::from_secs(5);

/// What the datastore can do, and what is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Deletion waits for finalizers.
    pub finalizers: bool,
    /// WorkloadEndpoints are objects that stay until somebody deletes them, not pods of Kubernetes.
    pub endpoints_are_stored: bool,
}

/// How far the datastore has been read.
#[derive(Clone, Debug, PartialEq)]
pub enum Sync {
    /// Not yet.
    Connecting,
    /// All of it; changes follow.
    InSync,
    /// It cannot be used now.
    Disconnected {
        /// Why.
        error: StoreError,
        /// All of it was read once.
        was_read: bool,
    },
}

impl Sync {
    /// Whether all of it was read once.
    fn was_read(&self) -> bool {
        match self {
            Sync::Connecting => false,
            Sync::InSync => true,
            Sync::Disconnected { was_read, .. } => *was_read,
        }
    }
}

/// The desk.
pub struct Desk {
    abilities: Abilities,
    environment: Environment,
    world: World,
    sync: Sync,
    leads: bool,
    settings: Settings,
    absences: Absences,
    attendance: Attendance,
    collector: Collector,
    /// Something has changed that host endpoints, pools or tiers depend on.
    changed: bool,
    /// When everything is looked at again without a change.
    look_at: Option<Timestamp>,
    /// When addresses are looked at again.
    collect_at: Option<Timestamp>,
    /// What looked like a leak when they were.
    suspects: Vec<Suspect>,
    /// When what is held is let go next, while definitions are gone.
    undefined: Option<Timestamp>,
    /// What cannot be done as it is written.
    problems: Vec<String>,
    /// What was said of objects.
    validity: Validity,
    /// What was decided not long ago.
    recent: Vec<(Timestamp, Action)>,
}

impl Desk {
    /// An empty desk.
    pub fn new(abilities: Abilities, environment: Environment) -> Self {
        let (settings, _) = environment.merge(None);
        Self {
            abilities,
            environment,
            world: World::default(),
            sync: Sync::Connecting,
            leads: false,
            settings,
            absences: Absences::default(),
            attendance: Attendance::default(),
            collector: Collector::default(),
            changed: true,
            look_at: None,
            collect_at: None,
            suspects: Vec::new(),
            undefined: None,
            problems: Vec::new(),
            validity: Validity::default(),
            recent: Vec::new(),
        }
    }

    /// Takes what the datastore says.
    pub fn sync(&mut self, event: SyncEvent) {
        match event {
            SyncEvent::Updates(updates) => updates.into_iter().for_each(|update| self.apply(update)),
            SyncEvent::InSync => {
                self.sync = Sync::InSync;
                self.changed = true;
            }
            SyncEvent::Disconnected(error) => {
                let was_read = self.sync.was_read();
                self.sync = Sync::Disconnected { error, was_read };
            }
        }
    }

    fn apply(&mut self, update: Update) {
        self.changed |= match update.key.kind {
            Kind::IPAMBlock => self.waits_for_blocks(),
            // Its node writes it again and again.
            Kind::CalicoNodeStatus => !is_status_alone(self.world.resource(&update.key), update.value.as_ref()),
            kind => matters(kind),
        };
        let is_configuration = update.key.kind == Kind::KubeControllersConfiguration;
        self.world.apply(update);
        if is_configuration && self.has_wrong_configuration() {
            // What was in force stays so. If that is not known, nothing is done that it may forbid.
            if !self.sync.was_read() {
                self.settings.node = None;
            }
        } else if is_configuration {
            let config = self.world.get::<KubeControllersConfigurationSpec>("default");
            let (settings, _) = self.environment.merge(config.map(|config| &config.spec));
            if settings.node != self.settings.node {
                // Another grace period may mean an earlier look.
                self.collect_at = None;
            }
            self.settings = settings;
        }
    }

    fn has_wrong_configuration(&self) -> bool {
        let mut all = self.world.of_kind(Kind::KubeControllersConfiguration);
        all.any(|config| matches!(config, Resource::Wrong(wrong) if wrong.metadata().name == "default"))
    }

    /// Whether a pool's deletion waits for its blocks to go.
    fn waits_for_blocks(&self) -> bool {
        let mut pools = self.world.of_kind(Kind::IPPool);
        self.abilities.finalizers && pools.any(|pool| pool.metadata().deletion_timestamp.is_some())
    }

    /// Begins to lead: everything is looked at as if for the first time.
    pub fn lead(&mut self) {
        self.leads = true;
        self.look_anew();
    }

    /// Leads no more.
    pub fn follow(&mut self) {
        self.leads = false;
        self.suspects.clear();
        self.problems.clear();
    }

    fn look_anew(&mut self) {
        self.absences = Absences::default();
        self.collector = Collector::default();
        self.changed = true;
        self.look_at = None;
        self.collect_at = None;
        self.recent.clear();
        self.validity = Validity::default();
    }

    /// This was decided and not done.
    pub fn not_done(&mut self, action: &Action) {
        if let Action::Judge { key, .. } = action {
            self.validity.failed(key);
        }
    }

    /// Something that was decided was not done: everything is looked at again after a while.
    pub fn failed(&mut self, now: Timestamp) {
        let soon = later(now, RETRY);
        self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
        self.collect_at = self.collect_at.map(|at| at.min(soon));
    }

    /// What is to be done now.
    pub fn decide(&mut self, now: Timestamp) -> Vec<Action> {
        if self.idle().is_some() {
            return self.let_go(now);
        }
        self.undefined = None;
        let due = |at: Option<Timestamp>| at.is_none_or(|at| now >= at);
        let settled = self.attendance.next.is_some_and(|at| now >= at);
        if !(self.changed || settled || due(self.look_at) || due(self.collect_at)) {
            return Vec::new();
        }
        let mut actions = Vec::new();
        let gone: BTreeSet<String> = self.attendance.gone.keys().cloned().collect();
        self.attendance = self.absences.look(now, &self.world);
        let went = self.attendance.gone.keys().any(|name| !gone.contains(name));
        let node = self.settings.node.clone();
        let period = node.as_ref().map_or(SignedDuration::from_mins(5), |node| node.period);
        if self.changed || went || due(self.look_at) {
            self.changed = false;
            self.look_at = Some(later(now, period));
            self.problems.clear();
            actions.extend(self.configuration());
            if let Some(settings) = &node {
                let (more, problems) = host_endpoints::decide(settings, &self.world, &self.attendance);
                actions.extend(more);
                self.problems = problems;
            }
            actions.extend(pools::decide(&self.world, self.abilities.finalizers));
            actions.extend(tiers::decide(&self.world, self.abilities.finalizers));
            actions.extend(self.validity.decide(now, &self.world));
            actions.extend(refusals::decide(&self.world));
            let again = self.validity.next();
            self.look_at = [self.look_at, again].into_iter().flatten().min();
        }
        match &node {
            Some(settings) if went || due(self.collect_at) => actions.extend(self.collect(now, settings.grace)),
            Some(_) => {}
            None => {
                self.suspects.clear();
                self.collect_at = Some(later(now, period));
            }
        }
        self.without_repetitions(now, actions)
    }

    /// While definitions are gone: what is being deleted and held by us goes, if the worker finds that nothing needs it. A server that has
    /// just started may not know all of its definitions yet, so this waits a little.
    fn let_go(&mut self, now: Timestamp) -> Vec<Action> {
        if !self.has_lost_definitions() {
            self.undefined = None;
            return Vec::new();
        }
        if now < *self.undefined.get_or_insert(later(now, RETRY)) {
            return Vec::new();
        }
        self.undefined = Some(later(now, RETRY));
        let held = |kind: Kind, finalizer: &'static str| {
            let all = self.world.of_kind(kind).map(Resource::metadata);
            let doomed = all.filter(|metadata| metadata.deletion_timestamp.is_some());
            doomed.filter(move |metadata| pools::is_held(metadata, finalizer))
        };
        let pools = held(Kind::IPPool, IP_POOL_FINALIZER).map(|metadata| Action::HoldPool {
            name: metadata.name.clone(),
            hold: false,
        });
        let tiers = held(Kind::Tier, TIER_FINALIZER).map(|metadata| Action::HoldTier {
            name: metadata.name.clone(),
            hold: false,
        });
        pools.chain(tiers).collect()
    }

    fn has_lost_definitions(&self) -> bool {
        let Sync::Disconnected { error, was_read } = &self.sync else {
            return false;
        };
        let undefined =
            matches!(error, StoreError::Unavailable(trouble) if trouble.reason == datastore::Reason::NotInstalled);
        self.leads && self.abilities.finalizers && *was_read && undefined
    }

    /// The same thing twice in a short time means that the picture has not followed yet, or that the store does not keep what
    /// is written as it was written. Neither gets better by doing it again at once.
    fn without_repetitions(&mut self, now: Timestamp, actions: Vec<Action>) -> Vec<Action> {
        self.recent.retain(|(at, _)| now < later(*at, RETRY));
        let is_recent = |action: &Action| self.recent.iter().any(|(_, known)| known == action);
        let (again, new): (Vec<Action>, Vec<Action>) = actions.into_iter().partition(is_recent);
        if !again.is_empty() {
            let soon = later(now, RETRY);
            self.look_at = Some(self.look_at.map_or(soon, |at| at.min(soon)));
        }
        again.iter().for_each(|action| self.not_done(action));
        self.recent.extend(new.iter().map(|action| (now, action.clone())));
        new
    }

    fn collect(&mut self, now: Timestamp, grace: Option<SignedDuration>) -> Vec<Action> {
        // Without Kubernetes a pod is known by its endpoint alone, which only our plugin writes.
        let others_pods = !self.abilities.endpoints_are_stored;
        let found = ipam_gc::decide(
            &mut self.collector,
            now,
            grace,
            &self.world,
            &self.attendance,
            others_pods,
        );
        self.collect_at = Some(later(now, ipam_gc::period(grace)));
        self.suspects = found.suspects;
        let mut actions = found.actions;
        if let Some(grace) = grace.filter(|_| self.abilities.endpoints_are_stored) {
            actions.extend(nodes::endpoints(now, grace, &self.world, &self.attendance));
        }
        actions
    }

    /// The configuration object is there, and its status says what is in force.
    fn configuration(&self) -> Vec<Action> {
        let Some(config) = self.world.get::<KubeControllersConfigurationSpec>("default") else {
            return match self.has_wrong_configuration() {
                true => Vec::new(),
                false => vec![Action::CreateConfiguration],
            };
        };
        let (_, status) = self.environment.merge(Some(&config.spec));
        match config.status.as_ref() == Some(&status) {
            true => Vec::new(),
            false => vec![Action::WriteConfigurationStatus(status)],
        }
    }

    /// When [`Self::decide`] is to be asked without another cause; `None`: not before something changes.
    pub fn next_wakeup(&self) -> Option<Timestamp> {
        if self.idle().is_some() {
            return self.undefined;
        }
        [self.look_at, self.collect_at, self.attendance.next]
            .into_iter()
            .flatten()
            .min()
    }

    /// Why nothing is decided.
    pub fn idle(&self) -> Option<&'static str> {
        let info = self.world.get::<ClusterInformationSpec>("default");
        match (&self.sync, self.leads) {
            (Sync::Connecting, _) => Some("the datastore has not been read yet"),
            (Sync::Disconnected { .. }, _) => Some("the datastore cannot be used"),
            (Sync::InSync, false) => Some("another process leads"),
            (Sync::InSync, true) if info.is_some_and(|info| info.spec.datastore_ready == Some(false)) => {
                Some("ClusterInformation says datastoreReady: false")
            }
            (Sync::InSync, true) => None,
        }
    }

    /// How far the datastore has been read.
    pub fn state(&self) -> &Sync {
        &self.sync
    }

    /// Whether this process leads.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// What is in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Controllers that are on and that this program does not have. Those that copy Kubernetes' objects into another datastore
    /// have nothing to do where Kubernetes is the datastore.
    pub fn missing(&self) -> Vec<&'static str> {
        let copies = ["policy", "workloadEndpoint", "serviceAccount", "namespace"];
        let missing = self.settings.missing.iter().copied();
        missing
            .filter(|name| self.abilities.endpoints_are_stored || !copies.contains(name))
            .collect()
    }

    /// What the datastore holds.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// What looked like a leak when addresses were looked at last.
    pub fn suspects(&self) -> &[Suspect] {
        &self.suspects
    }

    /// What cannot be done as it is written.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}

/// Whether host endpoints, pools, tiers, the configuration or what is said of objects depend on a kind. Addresses are looked at by the clock.
fn matters(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::WorkloadEndpoint | Kind::IPAMBlock | Kind::IPAMHandle | Kind::BlockAffinity
    )
}

fn is_status_alone(old: Option<&Resource>, new: Option<&Resource>) -> bool {
    match (old, new) {
        (Some(Resource::CalicoNodeStatus(old)), Some(Resource::CalicoNodeStatus(new))) => old.spec == new.spec,
        _ => false,
    }
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
