package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"meshnet/state"
)

const (
	marksBegin = "<!-- programming: written by make bench-program -->\n"
	marksEnd   = "<!-- programming ends -->\n"
	// changeBudget is what one change may take, ms.
	changeBudget = 5
)

// table returns the rows as Markdown: medians of the passes, and the least and the most of what has a budget.
func table(jobs []job, results [][]result, failures []error, passes int, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d processors, Linux %s, load average %s, %d passes in %v.\n", time.Now().UTC().Format(time.DateOnly),
		runtime.NumCPU(), word("/proc/sys/kernel/osrelease"), word("/proc/loadavg"), passes, took.Round(time.Second))
	b.WriteString(`One network with a container here and the others elsewhere. *whole* is from a view to a host that has nothing: plan, devices with their entries, the fast path's programs and maps, rows and flows of Open vSwitch, in one go;
*again* the same by a daemon that starts and finds it as it should be (0 steps, checked); *change* one container elsewhere more or less, from the merge of what its host said until flows and entries are
in, median (and most) of the changes. C has its fast path; what one costs on A is what it costs there. Memory is what each holds more than without the plan: ovs-vswitchd, the kernel (unreclaimable slabs), and the Go heap with the mesh, its view and its plan.

| transport | endpoints | peers | flows | whole, ms | of it plan + links + fast path + switch | again, ms | change, ms | vswitchd, MB | kernel, MB | daemon, MB |
|---|---|---|---|---|---|---|---|---|---|---|
`)
	var missed []string
	for i, j := range jobs {
		name := map[state.Transport]string{state.OVSUserspace: "A, B", state.KernelVXLAN: "C"}[j.Transport]
		rs := results[i]
		if len(rs) == 0 {
			missed = append(missed, j.String()+" (failed)")
			fmt.Fprintf(&b, "| %s | %d | %d | failed: %s |||||||||\n", name, j.Endpoints, j.Peers, oneLine(failures[i]))
			continue
		}
		of := func(get func(result) float64) float64 { return median(rs, get) }
		change := of(func(r result) float64 { return r.Change })
		if change > changeBudget {
			missed = append(missed, j.String())
		}
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %.0f | %.0f + %.0f + %.0f + %.0f | %.0f | %.2f (%.1f) | %.1f | %.1f | %.1f |\n", name, j.Endpoints, j.Peers, rs[0].Flows,
			of(func(r result) float64 { return r.Plan + r.Links + r.Fast + r.Switch }),
			of(func(r result) float64 { return r.Plan }), of(func(r result) float64 { return r.Links }),
			of(func(r result) float64 { return r.Fast }), of(func(r result) float64 { return r.Switch }),
			of(func(r result) float64 { return r.Again }), change, of(func(r result) float64 { return r.ChangeMost }),
			of(func(r result) float64 { return r.SwitchRSS }), of(func(r result) float64 { return r.Kernel }), of(func(r result) float64 { return r.Heap }))
	}
	verdict := "holds"
	if len(missed) > 0 {
		verdict = "**missed**: " + strings.Join(missed, "; ")
	}
	fmt.Fprintf(&b, "\nBudget of a change, ≤ %d ms: %s.\n", changeBudget, verdict)
	return b.String()
}

func oneLine(err error) string {
	if err == nil {
		return "not measured"
	}
	return strings.NewReplacer("\n", "; ", "|", "/").Replace(err.Error())
}

func median(rs []result, get func(result) float64) float64 {
	vs := make([]float64, len(rs))
	for i, r := range rs {
		vs[i] = get(r)
	}
	slices.Sort(vs)
	return (vs[(len(vs)-1)/2] + vs[len(vs)/2]) / 2
}

// word returns the first word of a file; what cannot be read is unknown.
func word(path string) string {
	text, _ := os.ReadFile(path)
	first, _, _ := strings.Cut(strings.TrimSpace(string(text)), " ")
	return cmp.Or(first, "unknown")
}

// replaceTable writes the table between its marks in a document, or with a heading at its end.
func replaceTable(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	before, rest, found := strings.Cut(string(old), marksBegin)
	_, after, ends := strings.Cut(rest, marksEnd)
	if found && !ends {
		return fmt.Errorf("%s has %q without %q", path, strings.TrimSpace(marksBegin), strings.TrimSpace(marksEnd))
	}
	if !found {
		before += "\n## Programming a host\n\n"
	}
	return os.WriteFile(path, []byte(before+marksBegin+text+marksEnd+after), 0o644)
}
