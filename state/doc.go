package state

import "meshnet/crdt"

// Doc is the merged state of the mesh as one node holds it. One goroutine owns it.
type Doc struct{ todo struct{} }

// NewDoc returns an empty document that self writes to, in epoch, with actor for shared records.
func NewDoc(self crdt.Node, epoch crdt.Epoch, actor crdt.Actor) *Doc { panic("todo") }

// Apply makes all the changes or none. Errors are for people.
func (d *Doc) Apply(cs ...Change) (Out, error) { panic("todo") }

// Merge takes in what another node said and returns what of it was news. It cannot fail.
func (d *Doc) Merge(in In) Out { panic("todo") }

// View returns the state as of now.
func (d *Doc) View() *View { panic("todo") }
