//! Real sockets, real processes, a real store. Few, ugly and honest; what can be shown without them is shown elsewhere.

mod processes;
mod sockets;
mod support;
