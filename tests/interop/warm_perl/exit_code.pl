#!/usr/bin/perl
END { print "end $?\n"; $? = 9 if $ENV{QUERY_STRING} =~ /nine/ }
# query: nine
print "before\n";
exit 7;
