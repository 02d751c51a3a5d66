"""The command line: the commands, the doctor, and the page of all options."""
