"""What is known of a policy: from the files of the run that it lies in, or from its checkpoint alone."""
