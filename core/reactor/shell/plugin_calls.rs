//! What children ask of Demi: requests for other platforms, and values in the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use demi_conductor::{Conductor, Event, Instance, Ticket};
use demi_platform::{Fault, RequestBuf};
use serde_json::value::RawValue;

use super::callers::has_dot_segments;
use super::Shell;
use crate::api;
use crate::calls::{Call, Origin};
use crate::clerk::{Clerk, PluginErrand, PluginOrder};
use crate::kit::PluginAsk;
use crate::mailbox::PluginStored;
use crate::problem::Problem;

use super::callers::PROGRESS_HEADER;

/// The requests of children that are under way.
pub(super) struct PluginCalls {
    /// By who asked; bounded by what each child may have under way.
    open: BTreeSet<(Instance, Ticket)>,
    /// While the bodies of all requests have more bytes, no child may add to them: `http.bodies_bytes_max`.
    bodies_bytes_max: usize,
}

impl PluginCalls {
    pub(super) fn new(bodies_bytes_max: usize) -> PluginCalls {
        PluginCalls { open: BTreeSet::new(), bodies_bytes_max }
    }

    /// The next request that this run is still owed an answer to.
    fn of(&self, instance: Instance) -> Option<(Instance, Ticket)> {
        self.open.range((instance, Ticket::new(0, 0))..).next().copied().filter(|(asker, _)| *asker == instance)
    }
}

impl Shell {
    /// Takes one thing that a child has asked for. False if there is none.
    pub(crate) fn take_plugin_ask(&mut self, conductor: &Conductor) -> bool {
        let Some((instance, ask)) = self.kit.plugin_asks.pop_front() else { return false };
        match ask {
            PluginAsk::Route { id, to, request } => self.route_for_plugin(instance, id, to, request, conductor),
            PluginAsk::StoreGet { id, key } => {
                self.store_for_plugin(instance, id, key, PluginErrand::Get, conductor);
            }
            PluginAsk::StorePut { id, key, value } => {
                self.store_for_plugin(instance, id, key, PluginErrand::Put(value), conductor);
            }
            PluginAsk::Progress { ticket, note } => self.tell_progress(ticket, instance, &note),
            PluginAsk::Tools(tools) => self.note_tools(conductor.platform_of(instance) as u32, &tools),
            PluginAsk::Ended => self.plugin_ended(instance),
        }
        true
    }

    /// Passes on how far a request is, to a client that has asked for that. How far a second instance is that was asked
    /// for the same would only confuse.
    fn tell_progress(&mut self, ticket: Ticket, instance: Instance, note: &str) {
        let is_wanted = |call: &&mut Call| call.wants_progress && call.attempt.instance == Some(instance);
        let Some(call) = self.kit.calls.get(ticket).filter(is_wanted) else { return };
        if let Origin::Client { place, serial } = call.origin {
            self.listener.inform(place, serial, PROGRESS_HEADER, note, self.now);
        }
    }

    fn route_for_plugin(
        &mut self,
        instance: Instance,
        id: Box<RawValue>,
        to: Option<String>,
        mut request: RequestBuf,
        conductor: &Conductor,
    ) {
        if request.request().method.is_empty() {
            let mut filled = RequestBuf::default();
            filled.fill(&demi_platform::Request { method: "POST", ..request.request() });
            request = filled;
        }
        let view = request.request();
        let checked = match api::check_asked(&view) {
            Err(problem) => Err(Fault::mistaken(problem.detail())),
            Ok(()) if has_dot_segments(view.path()) => {
                Err(Fault::mistaken("the target has . or .. segments; send it resolved"))
            }
            Ok(()) if self.kit.calls.bytes() + request.len() > self.plugin_calls.bodies_bytes_max => {
                Err(Fault::busy("as many bytes of requests are under way as may; see `http.bodies_bytes_max`"))
            }
            Ok(()) => match to {
                None => Ok(conductor.router().find(&api::question(&view, false))),
                Some(to) => conductor
                    .router()
                    .to(&to)
                    .map(Some)
                    .ok_or_else(|| Fault::mistaken(api::no_platform(conductor, &to).detail())),
            },
        };
        match checked {
            Ok(route) => {
                let idempotent = view.is_idempotent();
                let origin = Origin::Plugin { instance, id };
                let ticket = self.ask(Arc::new(request), origin, route, idempotent, conductor);
                self.plugin_calls.open.insert((instance, ticket));
            }
            Err(fault) => self.children.answer_route(instance, &id, Err(&fault), &mut self.kit),
        }
    }

    fn store_for_plugin(
        &mut self,
        instance: Instance,
        id: Box<RawValue>,
        key: String,
        errand: PluginErrand,
        conductor: &Conductor,
    ) {
        let plugin = self.roster[conductor.platform_of(instance)].name().to_owned();
        let again = id.clone();
        let order = PluginOrder { instance, id, plugin, key, errand };
        if !self.clerk.as_ref().is_some_and(|clerk| Clerk::serve_plugin(clerk, order)) {
            let fault = Fault::busy("too much is waiting for the store");
            self.children.answer_store(instance, &again, Err(&fault), &mut self.kit);
        }
    }

    /// The clerk has done a child's errand.
    pub(super) fn plugin_stored(&mut self, stored: &PluginStored) {
        let answer = stored.answer.as_ref().map(Option::as_deref);
        self.children.answer_store(stored.instance, &stored.id, answer, &mut self.kit);
    }

    /// Passes on to a child what became of its request.
    pub(super) fn tell_plugin(&mut self, instance: Instance, id: &RawValue, call: &Call, problem: Option<&Problem>) {
        self.plugin_calls.open.remove(&(instance, call.ticket));
        let fault = problem.map(|problem| match problem.status() {
            400..=499 => Fault::mistaken(problem.detail()),
            503 => Fault { retry_after: problem.wait(), ..Fault::busy(problem.detail()) },
            _ => Fault::failed(problem.detail()),
        });
        let answer = fault.as_ref().map_or(Ok(&call.attempt.reply), Err);
        self.children.answer_route(instance, id, answer, &mut self.kit);
    }

    /// A run is over: nobody waits for what it asked.
    fn plugin_ended(&mut self, instance: Instance) {
        while let Some(asked) = self.plugin_calls.of(instance) {
            self.plugin_calls.open.remove(&asked);
            let ticket = asked.1;
            if let Some(call) = self.kit.calls.get(ticket) {
                call.origin = Origin::Nobody;
                self.kit.events.push_back(Event::Gone { ticket });
            }
        }
    }
}
