package agent

import (
	"errors"
	"fmt"
)

// The kinds of refusal that only a host knows; the others are in package state.
var (
	// ErrGone: a container's network namespace is not there: it does not run, or another one has
	// its path or process id.
	ErrGone = errors.New("its network namespace is gone")
	// ErrRemoved: a container was removed and will not come back. It is [ErrGone] too.
	ErrRemoved = fmt.Errorf("it was removed: %w", ErrGone)
	// ErrRefused: it would break something that is there.
	ErrRefused = errors.New("refused")
	// ErrLate: not done in time.
	ErrLate = errors.New("not done in time")
)
