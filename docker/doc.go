// Package docker finds containers that Docker or Podman runs on this host, and follows what becomes of them.
//
// [Client] asks the Docker Engine API over its Unix socket, in the version that both sides know
// (Podman's service speaks it too), and waits for an answer for a bounded time. It keeps nothing: each question is asked anew.
// [Client.Watch] reads the stream of events and connects again for ever; whenever some may have been
// missed, it says so. What labels ask for is read by [Wants].
//
// It changes nothing in Docker, and it does not know what a network namespace is: it gives the process
// whose namespace it is. Where Docker does not run and its containers do (live-restore),
// [Client.Process] finds that process by its control group.
//
// A [Client] may be used by any goroutine.
package docker
