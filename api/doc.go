// Package api is the daemon's door for the command line: HTTP and JSON over a unix socket.
//
// [Server] turns requests into calls of a [Door] (the agent) and answers with the JSON objects that
// scripts rely on; [Client] is the other side, and gives errors back as [*Error] with a code. An open
// network namespace travels beside a request as a file descriptor (SCM_RIGHTS, unix(7)): see pass.go.
// It decides nothing and keeps nothing. Server and Client may be used by any number of goroutines.
package api
