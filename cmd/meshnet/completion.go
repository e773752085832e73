package main

import (
	"io"

	"github.com/urfave/cli/v2"
)

// The program lists what may come next itself, when its last argument is
// --generate-bash-completion.
const (
	completeBash = `# bash completion for meshnet: source <(meshnet completion bash)
_meshnet() {
	local cur=${COMP_WORDS[COMP_CWORD]}
	local words=("${COMP_WORDS[@]:1:COMP_CWORD-1}")
	[[ $cur == -* ]] && words+=("$cur")
	mapfile -t COMPREPLY < <(compgen -W "$(meshnet "${words[@]}" --generate-bash-completion 2>/dev/null)" -- "$cur")
}
complete -F _meshnet meshnet
`
	completeZsh = `#compdef meshnet
# zsh completion for meshnet: source <(meshnet completion zsh)
_meshnet() {
	local cur=${words[CURRENT]}
	local -a before=(${words[2,CURRENT-1]})
	[[ $cur == -* ]] && before+=($cur)
	compadd -- ${(f)"$(_CLI_ZSH_AUTOCOMPLETE_HACK= meshnet $before --generate-bash-completion 2>/dev/null)"}
}
compdef _meshnet meshnet
# Read by autoload, in the middle of the first completion.
[[ ${funcstack[1]} != _meshnet ]] || _meshnet
`
)

func (t *terminal) completion() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print what a shell needs to complete commands", ArgsUsage: "bash|zsh|fish",
		Action: verb(1, 1, words, func(c *cli.Context) error {
			script := ""
			switch c.Args().First() {
			case "bash":
				script = completeBash
			case "zsh":
				script = completeZsh
			case "fish":
				var err error
				if script, err = c.App.ToFishCompletion(); err != nil {
					return err
				}
			default:
				return usage(c, "unknown shell %q: want %s", c.Args().First(), c.Command.ArgsUsage)
			}
			if c.Bool("json") {
				t.json(struct {
					Script string `json:"script"`
				}{script})
				return nil
			}
			_, err := io.WriteString(t.out, script)
			return err
		}),
	}
}
