package state

import (
	"errors"
	"fmt"
)

// The kinds of refusal. Errors of this package and of those above it wrap one of them; what is
// wrapped around says what was tried and what a person can do.
var (
	// ErrInvalid: an argument that cannot be meant.
	ErrInvalid = errors.New("invalid")
	// ErrNoNetwork: no network of that name or id.
	ErrNoNetwork = errors.New("no such network")
	// ErrNetworkExists: the name shows another network.
	ErrNetworkExists = errors.New("network exists")
	// ErrNetworkInUse: containers are attached to it.
	ErrNetworkInUse = errors.New("network in use")
	// ErrOverlap: the subnet overlaps another network's.
	ErrOverlap = errors.New("subnet overlaps")
	// ErrNoSubnet: none of the subnets to choose from is free.
	ErrNoSubnet = errors.New("no free subnet")
	// ErrNoEndpoint: no attachment of that id, or of that container to that network.
	ErrNoEndpoint = errors.New("no such endpoint")
	// ErrNoContainer: no container of that name, id, process or path.
	ErrNoContainer = errors.New("no such container")
	// ErrNoAddress: no free address is to be had.
	ErrNoAddress = errors.New("no free address")
	// ErrAddressInUse: another endpoint has it.
	ErrAddressInUse = errors.New("address in use")
	// ErrNoNode: no node of that name or id.
	ErrNoNode = errors.New("no such node")
	// ErrForgotten: this node was given up by others and writes nothing until it begins a new epoch.
	ErrForgotten = errors.New("this node was declared gone")
	// ErrDoubt: others hold writes of this node that it does not know; it writes nothing until it
	// begins a new epoch.
	ErrDoubt = errors.New("this node was rolled back or copied")
)

// Refuse returns an error of a kind whose text is for people: why, and what to do.
func Refuse(kind error, format string, args ...any) error {
	return &refusal{kind, fmt.Sprintf(format, args...)}
}

type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }
