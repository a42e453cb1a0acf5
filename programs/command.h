/* command.h - the commands of the program. Each takes the arguments after its name and returns the exit
 * status. Called once, from the main thread. */
#ifndef PROGRAMS_COMMAND_H
#define PROGRAMS_COMMAND_H

enum exit_status {
    EXIT_DONE = 0,
    EXIT_REFUSED = 1, /* the model or the machine refused */
    EXIT_USAGE = 2,   /* the command line is wrong */
    EXIT_INTERRUPTED = 130,
};

int command_run(int argc, char **argv);
int command_topo(int argc, char **argv);
int command_quantize(int argc, char **argv);
int command_perplexity(int argc, char **argv);
int command_tokenize(int argc, char **argv);
int command_logits(int argc, char **argv);

#endif
