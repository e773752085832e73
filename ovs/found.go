package ovs

import (
	"context"

	"meshnet/plan"
)

// Found reads which port numbers are in use and what the datapath can do, before anything is
// applied: the first plan after a restart keeps them. It waits a moment for the connection that Run
// makes.
func (s *Switch) Found(ctx context.Context) (plan.Found, error) {
	db, err := s.reach(ctx)
	if err != nil {
		return plan.Found{}, err
	}
	return found(db, s.config.Bridge), nil
}
