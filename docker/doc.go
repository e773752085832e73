// Package docker finds containers that Docker runs on this host.
//
// [Client] asks the Docker Engine API over its Unix socket, in the version that both sides know, and
// waits for an answer for a bounded time. It keeps nothing: each question is asked anew.
//
// It changes nothing in Docker, and it does not know what a network namespace is: it gives the process
// whose namespace it is.
//
// A [Client] may be used by any goroutine.
package docker
