package api

import (
	"errors"
	"net/http"

	"meshnet/agent"
	"meshnet/state"
)

// Code tells a program why a request failed.
type Code string

const (
	// Failed: nothing more exact.
	Failed Code = "failed"
	// Invalid: the request is wrong whatever the state of the mesh.
	Invalid Code = "invalid"
	// NotFound: no such network, container or node.
	NotFound Code = "not_found"
	// InUse: a network with members, or an address, name or subnet that somebody has.
	InUse Code = "in_use"
	// Refused: it would break something that is there.
	Refused Code = "refused"
	// Late: not done in time; it may be later.
	Late Code = "late"
	// NoDaemon: nobody answers; never said by a daemon.
	NoDaemon Code = "no_daemon"
)

// Error is a failed request as the client sees it.
type Error struct {
	Message string `json:"error"`
	Code    Code   `json:"code"`
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// ErrNoDaemon: nobody answers on the socket.
var ErrNoDaemon = errors.New("no daemon answers")

// ErrForbidden: who asks may not use the socket.
var ErrForbidden = errors.New("not allowed to use the socket")

// ErrRunning: a living daemon has the socket.
var ErrRunning = errors.New("a daemon is running")

// kinds orders the sentinels; the first that an error wraps decides.
var kinds = [...]struct {
	is     error
	code   Code
	status int
}{
	{state.ErrInvalid, Invalid, http.StatusBadRequest},
	{state.ErrNoNetwork, NotFound, http.StatusNotFound},
	{state.ErrNoContainer, NotFound, http.StatusNotFound},
	{state.ErrNoEndpoint, NotFound, http.StatusNotFound},
	{state.ErrNoNode, NotFound, http.StatusNotFound},
	{state.ErrNetworkExists, InUse, http.StatusConflict},
	{state.ErrNetworkInUse, InUse, http.StatusConflict},
	{state.ErrOverlap, InUse, http.StatusConflict},
	{state.ErrAddressInUse, InUse, http.StatusConflict},
	{agent.ErrRefused, Refused, http.StatusConflict},
	{agent.ErrLate, Late, http.StatusServiceUnavailable},
}

// kindOf returns the code of an error and the HTTP status that goes with it.
func kindOf(err error) (Code, int) {
	for _, k := range kinds {
		if errors.Is(err, k.is) {
			return k.code, k.status
		}
	}
	return Failed, http.StatusInternalServerError
}
