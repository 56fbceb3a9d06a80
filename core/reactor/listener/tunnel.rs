//! The connection of a client that speaks another protocol with its service, for which Demi only carries the bytes.

use demi_conductor::{Ticket, Time};

use super::{connection_line, mark_dirty, write_head, Exchange, Listener, State};
use crate::kit::Kit;

impl Listener {
    /// The service changes protocols: from here on all bytes are its own. `headers` say to which.
    pub(crate) fn begin_tunnel(&mut self, place: usize, serial: u64, ticket: Ticket, headers: &[u8], now: Time) {
        let date = self.date.text();
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        let State::Waiting { exchange, .. } = client.state else { return };
        let out = &mut client.outgoing.bytes;
        write_head(out, 101, "", headers, date, connection_line(Exchange { keeps_alive: true, ..exchange }, true));
        out.extend_from_slice(b"\r\n");
        client.state = State::Tunnel { ticket, is_over: false, is_shut: false };
        (client.ends_by_close, client.is_held) = (true, false);
        self.counts.tunnels += 1;
        mark_dirty(place, client, &mut self.dirty, now);
        self.list_if_more(place);
    }

    /// How many connections are tunnels.
    pub(super) fn tunnels(&self) -> usize {
        self.clients.iter().filter(|(_, client)| matches!(client.state, State::Tunnel { .. })).count()
    }

    /// Whether this connection is a tunnel.
    pub(crate) fn is_tunnel(&self, place: usize, serial: u64) -> bool {
        let client = self.clients.get(place).filter(|client| client.serial == serial);
        client.is_some_and(|client| matches!(client.state, State::Tunnel { .. }))
    }

    /// Takes what the client sends through the tunnel.
    pub(super) fn carry(&mut self, place: usize, bytes: &[u8], now: Time, kit: &mut Kit) -> usize {
        let client = &mut self.clients[place];
        let State::Tunnel { ticket, .. } = client.state else { return 0 };
        let Some(upload) = kit.calls.upload(ticket) else { return bytes.len() };
        upload.bytes.extend_from_slice(bytes);
        client.is_held = !upload.has_room();
        client.since = now;
        kit.calls.hold(bytes.len());
        self.moved.push_back(ticket);
        bytes.len()
    }

    /// The client sends nothing more through the tunnel, and may still be sent something.
    pub(super) fn end_of_tunnel(&mut self, place: usize, kit: &mut Kit) {
        let State::Tunnel { ticket, is_over, .. } = &mut self.clients[place].state else { return };
        *is_over = true;
        if let Some(upload) = kit.calls.upload(*ticket) {
            upload.is_done = true;
        }
        self.moved.push_back(*ticket);
    }

    /// The service sends nothing more through the tunnel: the client is told once it has all.
    pub(crate) fn shut(&mut self, place: usize, serial: u64, now: Time) {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        if let State::Tunnel { is_shut, .. } = &mut client.state {
            *is_shut = true;
            mark_dirty(place, client, &mut self.dirty, now);
        }
    }

    /// The next call whose client has sent something to be passed on.
    pub(crate) fn next_moved(&mut self) -> Option<Ticket> {
        self.moved.pop_front()
    }

    /// What the client sent was taken: more of it may be read.
    pub(crate) fn read_on(&mut self, place: usize, serial: u64, now: Time) {
        let Some(client) = self.clients.get_mut(place).filter(|client| client.serial == serial) else { return };
        if client.is_held {
            (client.is_held, client.since) = (false, now);
            self.continue_if_owed(place, now);
            self.list_if_more(place);
        }
    }
}
