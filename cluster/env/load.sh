# Exports every setting of this folder: `. cluster/env/load.sh`, in the shell that starts Ray. Values may hold spaces, so the files are
# read line by line and not run.
for raymlp_file in "$(dirname "${BASH_SOURCE[0]}")"/*.env; do
  while IFS= read -r raymlp_line; do
    case $raymlp_line in '' | '#'*) ;; *) export "${raymlp_line?}" ;; esac
  done < "$raymlp_file"
done
unset raymlp_file raymlp_line
