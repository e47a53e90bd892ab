#!/usr/bin/perl
# plain: changes its process|sets a timer
BEGIN { alarm 5 }
print alarm(0) > 0 ? "set\n" : "unset\n";
